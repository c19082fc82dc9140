"""R2D2, robust refusal dynamic defense: adversarial training against GCG (HarmBench, arXiv 2402.04249, Sec. 5).

`data` are harmless conversations, `cases` harmful requests, each with a refusal and an answer. What TAR's paper set for
Llama 3 is not known.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bulwark.unlearning.immunisation.settings import AdversarialTrainingSettings

if TYPE_CHECKING:
    from bulwark.training.finetuning import Course
    from bulwark.training.objectives import Objective


class Settings(AdversarialTrainingSettings):
    """Data, pool and attack, the weights of the three losses, and the training."""


def objective(course: Course, settings: Settings) -> Objective:
    """Harmless fine-tuning beside the away and toward losses on cases that GCG keeps improving."""
    from bulwark.unlearning.immunisation.adversarial import AdversarialTraining

    return AdversarialTraining(course, settings)
