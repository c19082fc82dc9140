"""Random mapping: hidden states of the forget set become random vectors, one per token of the vocabulary.

L = CE(retain) + mean over layers and tokens of 1 - |cos(h, r(token))|, the initial safeguard of TAR and a baseline by
itself (Tamirisa et al., arXiv 2408.00761, Sec. 4 and the authors' code). All hidden states count, from the embeddings
to those behind the final norm.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bulwark.unlearning.padding import PaddingSettings

if TYPE_CHECKING:
    from bulwark.training.finetuning import Course
    from bulwark.training.objectives import Objective


class Settings(PaddingSettings):
    """Both data sets, the weights of their losses and the training."""


def objective(course: Course, settings: Settings) -> Objective:
    """Cross-entropy on the retain set, and on the forget set the misalignment with the random vectors."""
    from bulwark.training.objectives import hidden_states
    from bulwark.unlearning.forgetting import ForgetRetain
    from bulwark.unlearning.losses import misalignment, random_rows
    from bulwark.unlearning.padding import counted

    class RandomMap(ForgetRetain):
        def forget_loss(self, model, batch):
            if settings.count_padding:
                batch = counted(batch, settings.training.max_tokens, course.pad_id)
            states = hidden_states(model, batch)
            ids = batch.input_ids.flatten()[batch.positions] % course.builder.vocabulary
            known, places = ids.unique(return_inverse=True)
            rows = random_rows(known, states[0].shape[-1], course.job.seed)[places]
            return misalignment(states, batch.positions, rows).sum() / max(1, batch.step_positions)

    return RandomMap(course, settings)
