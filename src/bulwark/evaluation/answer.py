"""A checkpoint answers a benchmark: prompts in, one line per answer out, resumable by record.

The expensive half of an evaluation; the cheap half, scoring the answers, is `bulwark.evaluation.score`.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bulwark import files
from bulwark.evaluation.benchmark import Benchmark
from bulwark.models import manifests
from bulwark.models.open import LanguageModel, open_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from bulwark.models.decoding import Decoding
    from bulwark.models.generation import Answer
    from bulwark.models.likelihoods import Continuation, LogLikelihood
    from bulwark.prompts.builder import Prompt, PromptBuilder

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Examinee:
    """An open checkpoint and what an evaluation may read and write.

    language_model: the checkpoint. Only for a benchmark with `prompts` does its builder cut prompts to
    `decoding.max_prompt_tokens`. inputs: the files that the benchmark's `Settings.inputs()` names. partial,
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


def answer(
    checkpoint: Path,
    records: Path,
    benchmark: Benchmark,
    *,
    seed: int,
    dtype: str,
    threads: int,
    answers: Path,
    provenance: Path,
    inputs: Mapping[str, Path] | None = None,
) -> None:
    """Let `checkpoint` answer the benchmark over `records`.

    inputs: the further files that the benchmark reads, by the names in its `Settings.inputs()`.
    Writes `answers` (JSON lines: id, variant, response, tokens, finish, truncated) and `provenance` (how they were
    made). Finished answers of an interrupted run, kept in `<answers>.partial`, are not made again if nothing
    that decides them has changed.
    """
    started = time.time()
    inputs = {name: Path(path) for name, path in (inputs or {}).items()}
    longest = benchmark.settings.decoding.max_prompt_tokens if benchmark.prompts else None
    language_model = open_model(checkpoint, dtype, max_tokens=longest, threads=threads)
    partial = answers.with_name(answers.name + ".partial")
    settled = {
        "checkpoint": files.digest(language_model.manifest),
        "records": files.digest(records),
        "settings": benchmark.settings.model_dump(mode="json", exclude={"scoring"}),
        "prompt": language_model.builder.digest,
        "dtype": language_model.dtype,
        "seed": seed,
        "inputs": {name: files.digest(path) for name, path in inputs.items()},
    }
    examinee = Examinee(language_model, seed, inputs, partial, files.digest(settled))
    rows = benchmark.answers(examinee, benchmark.load(records))
    files.write_text(answers, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    made = {
        **settled,
        "template": language_model.template,
        "device": language_model.device,
        "answers": len(rows),
        "truncated_prompts": sum(row["truncated"] for row in rows),
        "wall_seconds": round(time.time() - started, 1),
        **manifests.provenance(),
    }
    files.write_text(provenance, json.dumps(made, indent=1) + "\n")
    partial.unlink(missing_ok=True)
    log.info("%d answers in %.0f s", len(rows), time.time() - started)
