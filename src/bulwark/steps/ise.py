"""ISE: a learned vector per role is added to each token's embedding (Wu et al. 2024, arXiv 2410.09102)."""

from __future__ import annotations

from typing import Any, Literal

from bulwark.training.finetuning import FineTuningSettings


class Settings(FineTuningSettings):
    """`response_role` says whose vector the response tokens get; ASIDE's authors give them the data's."""

    response_role: Literal["data", "instruction"] = "data"


def embedding(settings: Settings) -> dict[str, Any]:
    """One learned vector for instructions and one for data, x + S[role]."""
    return {"method": "ise", "response_role": settings.response_role}
