"""TAR, tampering attack resistance: trained so that fine-tuning attacks do not bring back what was forgotten.

Tamirisa et al. 2024 (arXiv 2408.00761, ICLR 2025). The second of two stages, behind `random_map` for knowledge; for
refusals it starts from the chat model itself. Variants: `mlac` and `sophon` (App. G.3), and one per domain.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bulwark.unlearning.tampering.settings import TamperingSettings

if TYPE_CHECKING:
    from bulwark.training.finetuning import Course
    from bulwark.training.objectives import Objective


class Settings(TamperingSettings):
    """See `TamperingSettings`."""


def objective(course: Course, settings: Settings) -> Objective:
    """The retain loss and the resistance to simulated attacks."""
    from bulwark.unlearning.tampering.tampering import Tampering

    return Tampering(course, settings)
