"""The open checkpoint that a benchmark puts its questions to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bulwark.models.open import LanguageModel

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from bulwark.models.decoding import Decoding
    from bulwark.models.generation import Answer
    from bulwark.models.likelihoods import Continuation, LogLikelihood
    from bulwark.prompts.builder import Prompt, PromptBuilder


@dataclass(frozen=True)
class Examinee:
    """An open checkpoint and what an evaluation may read and write.

    language_model: the checkpoint; its builder cuts prompts to what the model reads beside `decoding.max_new_tokens`,
    and to `decoding.max_prompt_tokens`. inputs: the files that the benchmark's `Settings.inputs()` names. partial,
    fingerprint: where finished answers may be kept, and what decides them, as `generation.generate` wants both.
    """

    language_model: LanguageModel
    seed: int
    inputs: Mapping[str, Path]
    partial: Path
    fingerprint: str

    @property
    def model(self) -> PreTrainedModel:
        """In evaluation mode, on its device."""
        return self.language_model.model

    @property
    def builder(self) -> PromptBuilder:
        """The prompt builder of the checkpoint's template."""
        return self.language_model.builder

    def generate(self, prompts: Sequence[tuple[str, Prompt]], decoding: Decoding) -> list[Answer]:
        """One answer per (key, prompt), in the given order; those of an interrupted run are not made again."""
        return self.language_model.generate(
            prompts, decoding, seed=self.seed, partial=self.partial, fingerprint=self.fingerprint
        )

    def log_likelihoods(self, requests: Sequence[Continuation]) -> list[LogLikelihood]:
        """The log-likelihood of every continuation, in the given order; resumable as `generate` is."""
        return self.language_model.log_likelihoods(requests, partial=self.partial, fingerprint=self.fingerprint)
