"""ISE: a learned vector per role is added to each token's embedding (Wu et al. 2024, arXiv 2410.09102)."""

from __future__ import annotations

from typing import Any

from bulwark.training.finetuning import RoleTraining


class Settings(RoleTraining):
    """`response_role` says whose vector the response tokens get; ASIDE's authors give them the data's."""


def embedding(settings: Settings) -> dict[str, Any]:
    """A learned vector for each role, x + S[role]."""
    return {"method": "ise", **settings.described_roles()}
