"""Plain supervised fine-tuning: every token is embedded alike, whatever its role (ASIDE's "Vanilla", Sec. 4.1)."""

from __future__ import annotations

from typing import Any

from bulwark.training.finetuning import FineTuningSettings


class Settings(FineTuningSettings):
    """Data and training only."""


def embedding(settings: Settings) -> dict[str, Any]:
    """The plain embedding."""
    return {"method": "vanilla"}
