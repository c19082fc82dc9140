"""Refusal training: fine-tuning on refusals of harmful requests beside data that are to be kept.

L = CE(retain) + CE(forget), where the forget set has harmful requests with what is to be answered instead: a set of
preferences of which `side: chosen` is the refusal, or a set of conversations. The plainest safeguard of harmful
requests, as in the safety data of instruction tuning (Bianchi et al. 2024, arXiv 2309.07875).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bulwark.unlearning.settings import ForgettingSettings

if TYPE_CHECKING:
    from bulwark.training.finetuning import Course
    from bulwark.training.objectives import Objective


class Settings(ForgettingSettings):
    """Both data sets, the weights of their losses and the training."""


def objective(course: Course, settings: Settings) -> Objective:
    """Cross-entropy on both sets."""
    from bulwark.training.objectives import next_token_loss
    from bulwark.unlearning.forgetting import ForgetRetain

    class RefusalTraining(ForgetRetain):
        def forget_loss(self, model, batch):
            return next_token_loss(model, batch)

    return RefusalTraining(course, settings)
