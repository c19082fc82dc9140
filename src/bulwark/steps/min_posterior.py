"""Min posterior: the true tokens of the forget set become improbable, and then are left alone.

L = CE(retain) - mean log(1 - p(token)) over the forget set's tokens, where those of log p below a threshold give
nothing (Tamirisa et al., arXiv 2408.00761, App. G.1 and the authors' code).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from bulwark.unlearning.settings import ForgettingSettings

if TYPE_CHECKING:
    from bulwark.training.finetuning import Course
    from bulwark.training.objectives import Objective


class Settings(ForgettingSettings):
    """threshold: the log-probability, in nats, below which a token counts as forgotten."""

    threshold: float = Field(-15.0, lt=0)


def objective(course: Course, settings: Settings) -> Objective:
    """Cross-entropy on the retain set, and on the forget set the log-probability of anything but the token."""
    from bulwark.models.readout.losses import Each
    from bulwark.training.objectives import summed
    from bulwark.unlearning.forgetting import ForgetRetain
    from bulwark.unlearning.losses import min_posterior

    class MinPosterior(ForgetRetain):
        def forget_loss(self, model, batch):
            of_each = Each(lambda logits, rows: min_posterior(logits, batch.targets[rows], settings.threshold))
            return summed(model, batch, of_each, max(1, batch.step_tokens))

    return MinPosterior(course, settings)
