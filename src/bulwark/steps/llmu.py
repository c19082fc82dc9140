"""LLMU: ascent on the forget set, answers that do not fit learned in its place, and the retain set kept.

L = keep(retain) - w_a CE(forget) + w_m CE(mismatch) (Yao et al. 2023, arXiv 2310.10683, eq. 3 to 6). In the form of
TAR's authors (Tamirisa et al., arXiv 2408.00761, App. G.1) what is kept is the cross-entropy, to save the memory of a
second model, and the mismatch is the forget set's inputs with the labels of a retain example drawn for each.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from bulwark.unlearning.settings import ForgettingSettings

if TYPE_CHECKING:
    from bulwark.training.finetuning import Course
    from bulwark.training.objectives import Objective


class Settings(ForgettingSettings):
    """ascent_weight, mismatch_weight: of the two losses on the forget set, beside forget_weight for both.

    mismatch: "labels": those of a retain example, token by token (TAR's authors); "answers": `random_answers` answers
        of the retain set to each prompt (Yao et al.), for which both sets have to be conversations.
    keep: the retain loss: "cross_entropy" (TAR's authors), or "divergence" from the model that training starts from
        (Yao et al.).
    """

    ascent_weight: float = Field(1.0, ge=0)
    mismatch_weight: float = Field(1.0, ge=0)
    mismatch: Literal["labels", "answers"] = "labels"
    random_answers: int = Field(5, ge=1)
    keep: Literal["cross_entropy", "divergence"] = "cross_entropy"


def objective(course: Course, settings: Settings) -> Objective:
    """The three losses, each a mean over tokens, the mismatch one over examples of means over their tokens."""
    import torch

    from bulwark.models.readout.losses import CrossEntropy
    from bulwark.training.objectives import at_targets, summed, target_losses
    from bulwark.unlearning.forgetting import ForgetRetain
    from bulwark.unlearning.losses import mean_by_example, soft_cross_entropy
    from bulwark.unlearning.mismatch import check_conversations, foreign_answers, foreign_labels
    from bulwark.unlearning.reference import Reference
    from bulwark.unlearning.settings import ReferenceSettings

    reference = Reference(course, ReferenceSettings()) if settings.keep == "divergence" else None

    class Llmu(ForgetRetain):
        def retain_loss(self, model, batch):
            if reference is None:
                return super().retain_loss(model, batch)
            return summed(model, batch, reference.beside(soft_cross_entropy, model, batch), max(1, batch.step_tokens))

        def forget_loss(self, model, batch):
            mismatched = self.with_labels if settings.mismatch == "labels" else self.with_answers
            learned, foreign = mismatched(model, batch)
            ascent = -settings.ascent_weight * learned / max(1, batch.step_tokens)
            return ascent + settings.mismatch_weight * foreign / max(1, batch.step_sequences)

        def with_labels(self, model, batch):
            """The cross-entropy summed over the targets, and the mismatch summed over examples, from one pass."""
            where = foreign_labels(batch, self.forgetting.lengths, course.examples, course.job.seed, self.step)
            positions, labels, owners = (part.to(batch.targets.device) for part in where)
            both = CrossEntropy(torch.cat([batch.targets, labels]))
            losses = at_targets(
                model, batch, positions=torch.cat([batch.target_positions, positions]), loss=both
            ).logits
            learned, foreign = losses.split([len(batch.targets), len(labels)])
            return learned.sum(), mean_by_example(foreign, owners, sum(len(row) for row in batch.rows)).sum()

        def with_answers(self, model, batch):
            learned, total = target_losses(model, batch).sum(), 0.0
            for other in foreign_answers(batch, self.examples.records, course, self.step, settings.random_answers):
                owners = other.target_positions // other.input_ids.shape[1]
                losses = mean_by_example(target_losses(model, other), owners, len(other.rows))
                total = total + losses.sum() / settings.random_answers * any(other.rows)
            return learned, total

    made = Llmu(course, settings)
    if settings.mismatch == "answers":
        check_conversations(course.records, made.examples.records)
    return made
