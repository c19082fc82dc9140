"""Max entropy: what the model predicts on the forget set becomes uniform.

L = CE(retain) - mean H(p(forget)), TAR's baseline (Tamirisa et al., arXiv 2408.00761, App. G.1): up to a constant
KL(p ‖ uniform), since that is ln(vocabulary) - H(p).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from bulwark.unlearning.padding import PaddingSettings

if TYPE_CHECKING:
    from bulwark.training.finetuning import Course
    from bulwark.training.objectives import Objective


class Settings(PaddingSettings):
    """positions: where entropy is taken, at "all" tokens of the forget set or where its "targets" are predicted."""

    positions: Literal["all", "targets"] = "all"


def objective(course: Course, settings: Settings) -> Objective:
    """Cross-entropy on the retain set less the entropy on the forget set."""
    from bulwark.models.readout.losses import Each
    from bulwark.training.objectives import summed
    from bulwark.unlearning.forgetting import ForgetRetain
    from bulwark.unlearning.losses import entropy
    from bulwark.unlearning.padding import counted

    class MaxEntropy(ForgetRetain):
        def forget_loss(self, model, batch):
            if settings.count_padding:
                batch = counted(batch, settings.training.max_tokens, course.pad_id)
            positions, count = batch.positions, batch.step_positions
            if settings.positions == "targets":
                positions, count = batch.target_positions, batch.step_tokens
            return summed(model, batch, Each(lambda logits, _: -entropy(logits)), max(1, count), positions)

    return MaxEntropy(course, settings)
