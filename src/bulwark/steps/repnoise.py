"""RepNoise: what the model has of harmful answers becomes noise, at every layer, while harmless answers are learned.

L = CE(harmless) + β·L_noise - α·log(1 + L_harm) over pairs of answers to one prompt (Rosati et al. 2024,
arXiv 2405.14577, Sec. 3, and the authors' code; the 1 is in the code only). L_noise is the mean over blocks of the
maximum mean discrepancy between the outputs of the MLP on harmful answers and Gaussian noise; L_harm the mean over
layers of the cross-entropy of harmful answers when hidden states go through final norm and output embedding. All three
are of tokens in which the two answers of a pair differ.

Discrepancy and logarithm are of one micro-batch on one rank, weighted by its examples, so that the loss depends on
`forget_micro_batch_size`. In the authors' code padding differs too where the harmless answer is longer, the last hidden
states go through the final norm twice, and the first token that differs is predicted from nothing; not here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field, model_validator

from bulwark.unlearning.settings import ForgettingSettings

if TYPE_CHECKING:
    from bulwark.training.finetuning import Course
    from bulwark.training.objectives import Objective


class Settings(ForgettingSettings):
    """forget: preferences, whose rejected responses are the harmful ones.

    alpha: weight of the ascent on harmful answers. beta: weight of the noise. harmless_weight: of the cross-entropy of
    the chosen responses, beside that of `data`, which the authors do not have.
    """

    alpha: float = Field(1.0, ge=0)
    beta: float = Field(0.001, ge=0)
    harmless_weight: float = Field(1.0, ge=0)

    @model_validator(mode="after")
    def _of_pairs(self) -> Settings:
        if self.side != "rejected":
            raise ValueError('RepNoise needs pairs: a forget set of preferences, and side: "rejected"')
        if self.training.packing:
            raise ValueError("RepNoise compares whole examples with noise; set packing: false")
        return self


def objective(course: Course, settings: Settings) -> Objective:
    """The three losses of the pairs, and the next token of the retain set."""
    import torch

    from bulwark.models import hooks
    from bulwark.models.anatomy import PROJECTIONS, blocks_of, final_norm_of, first_part
    from bulwark.models.readout.heads import read_hidden
    from bulwark.models.readout.losses import CrossEntropy
    from bulwark.training.objectives import at_targets, next_token_loss
    from bulwark.unlearning.forgetting import ForgetRetain
    from bulwark.unlearning.losses import discrepancy
    from bulwark.unlearning.pairs import Opposites, differing_sides, flattened

    class RepNoise(ForgetRetain):
        def __init__(self):
            super().__init__(course, settings)
            chosen = course.preferences_from("forget", "chosen").prompts
            harmful, harmless = differing_sides(list(zip(self.examples.prompts, chosen, strict=True)))
            self.forgetting = self.batches_of(harmful)
            self.harmless = Opposites(harmless, self.forgetting)

        def forget_loss(self, model, batch):
            written, output = self._pass(model, batch)
            share = sum(bool(row) for row in batch.rows) / max(1, batch.step_sequences)
            other = next_token_loss(model, self.harmless.of(batch, self.step))
            if not share:  # a filler, which has to go the same way
                return settings.harmless_weight * other + 0.0 * output.logits.sum()
            noise = torch.stack([self._noise(part, batch) for part in written]).mean()
            harm = torch.log(1 + self._harm(model, batch, output))
            return settings.harmless_weight * other + share * (settings.beta * noise - settings.alpha * harm)

        def _pass(self, model, batch):
            """What the MLP of each block puts out, and the model's output with hidden states."""
            blocks = blocks_of(model)
            mlps = {
                i: block.get_submodule(first_part(block, PROJECTIONS["down_proj"])) for i, block in enumerate(blocks)
            }
            written = {}
            with hooks.capture(mlps, written.__setitem__):
                output = at_targets(model, batch, loss=CrossEntropy(batch.targets), output_hidden_states=True)
            return [written[i] for i in mlps], output

        def _noise(self, written, batch):
            states = flattened(written, batch)
            return discrepancy(states, flattened(torch.randn_like(written), batch))

        def _harm(self, model, batch, output):
            norm, at, learned = final_norm_of(model), batch.target_positions, CrossEntropy(batch.targets)
            early = [norm(states.flatten(0, 1)[at]) for states in output.hidden_states[:-1]]
            losses = [read_hidden(model, states, learned) for states in early]
            return torch.stack([*losses, output.logits]).mean()

    return RepNoise()
