"""Relearning: an adversary fine-tunes a defended model on what it was to forget, and facts are watched on the way.

Every row of the TAR paper's red team (Tamirisa et al. 2024, arXiv 2408.00761, App. F) is a variant of this step:
config/steps/relearn_<domain>_<data>_<learning rate>[_<what else differs>][_<optimizer steps>].yaml. Without a number of
steps it is 500, as in the paper's last version. The other variants are named after what they aim at.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bulwark.training.finetuning import Course
from bulwark.unlearning.red_team.settings import RelearningSettings

if TYPE_CHECKING:
    from bulwark.training.objectives import Objective
    from bulwark.training.observers import Observer

Settings = RelearningSettings


def objective(course: Course, settings: Settings) -> Objective:
    from bulwark.unlearning.red_team.relearning import Relearning

    return Relearning(course, settings)


def observers(course: Course, settings: Settings) -> list[Observer]:
    from bulwark.unlearning.red_team.watch import Watch

    return [] if settings.watch is None else [Watch(course, settings.watch)]
