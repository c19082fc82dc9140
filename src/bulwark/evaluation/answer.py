"""A checkpoint answers a benchmark: prompts in, one line per answer out, resumable by record.

The expensive half of an evaluation; the cheap half, scoring the answers, is `bulwark.evaluation.score`.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bulwark import files, seals
from bulwark.evaluation.benchmark import Benchmark
from bulwark.evaluation.examinee import Examinee
from bulwark.models import manifests
from bulwark.models.open import open_model
from bulwark.models.placing.loading import Loading

log = logging.getLogger(__name__)


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
    code: str = "",
    loading: Loading | None = None,
) -> None:
    """Let `checkpoint` answer the benchmark over `records`.

    inputs: the further files that the benchmark reads, by the names in its `Settings.inputs()`. code: the digest of the
    code that makes prompts and answers. loading: how the model's weights are held.
    Writes `answers` (JSON lines: id, variant, response, tokens, finish, truncated) and `provenance` (how they were
    made). Finished answers of an interrupted run, kept in `<answers>.partial`, are not made again if nothing
    that decides them has changed. A trial whose training diverged has no model: no answers, and the reason.
    """
    started = time.time()
    if (reason := manifests.divergence(checkpoint)) is not None:
        log.warning("%s: no answers. %s", checkpoint, reason)
        known = {"checkpoint": seals.content(manifests.manifest_path(checkpoint)), "records": files.digest(records)}
        files.write_text(answers, "")
        _note(provenance, {**known, "diverged": reason})
        return
    inputs = {name: Path(path) for name, path in (inputs or {}).items()}
    decoding = getattr(benchmark.settings, "decoding", None)
    longest, new = (decoding.max_prompt_tokens, decoding.max_new_tokens) if decoding else (None, 0)
    language_model = open_model(checkpoint, dtype, max_tokens=longest, new_tokens=new, threads=threads, loading=loading)
    partial = answers.with_name(answers.name + ".partial")
    settled = {
        "checkpoint": seals.content(language_model.manifest),
        "records": files.digest(records),
        "settings": benchmark.settings.model_dump(mode="json", exclude={"scoring"}),
        "prompt": language_model.builder.digest,
        "dtype": language_model.dtype,
        "attention": language_model.loading.attention,
        "seed": seed,
        "inputs": {name: seals.content(path) for name, path in inputs.items()},
        "code": code,
    }
    examinee = Examinee(language_model, seed, inputs, partial, files.digest(settled))
    rows = benchmark.answers(examinee, benchmark.load(records))
    files.write_text(answers, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    made = {
        **settled,
        "template": language_model.template,
        "device": language_model.device,
        "gpus": language_model.loading.gpus,
        "answers": len(rows),
        "truncated_prompts": sum(row["truncated"] for row in rows),
        "prompt_limit": language_model.builder.max_tokens,
        "positions": language_model.positions,
        "wall_seconds": round(time.time() - started, 1),
    }
    _note(provenance, made)
    partial.unlink(missing_ok=True)
    log.info("%d answers in %.0f s", len(rows), time.time() - started)


def _note(provenance: Path, made: Mapping[str, Any]) -> None:
    files.write_text(provenance, json.dumps({**made, **manifests.provenance()}, indent=1) + "\n")
