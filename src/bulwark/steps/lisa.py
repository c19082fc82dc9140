"""Lisa: a provider's fine-tuning in which alignment data and the user's take turns (arXiv 2405.18641).

Unlike the other defenses it protects no open weights: it takes the place of the fine-tuning that a user asks for.
`data` is what the user has uploaded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bulwark.unlearning.immunisation.settings import AlternationSettings

if TYPE_CHECKING:
    from bulwark.training.finetuning import Course
    from bulwark.training.objectives import Objective


class Settings(AlternationSettings):
    """The user's data and the alignment data, their phases, and the training."""


def objective(course: Course, settings: Settings) -> Objective:
    """The two phases in turn, with the proximal term."""
    from bulwark.unlearning.immunisation.alternation import Alternation

    return Alternation(course, settings)
