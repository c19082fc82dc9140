"""A checkpoint answers a benchmark: prompts in, one line per answer out, resumable by record.

The dear half of an evaluation. The cheap half, scoring the answers, is `bulwark.benchmarks.score_file`.
Most benchmarks only say what is asked (`prompts`) and have the text generated here. One that needs more of the model
than text (log-likelihoods, hidden states) has a function `answers` instead, which is given the open checkpoint.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bulwark import benchmarks, files
from bulwark.models import manifests
from bulwark.settings import Closed, validated

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from bulwark.prompts.builder import PromptBuilder

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Examinee:
    """An open checkpoint and what an evaluation may read and write.

    model: in evaluation mode, on its device. template, builder: the name of its prompt template, and a builder with it.
    Only for a benchmark with `prompts` does the builder cut prompts to `decoding.max_prompt_tokens`. manifest: of the
    checkpoint. inputs: the files that the benchmark's `Settings.inputs()` names. partial, fingerprint: where finished
    answers may be kept, and what decides them, as `generation.generate` wants both.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    template: str
    builder: PromptBuilder
    device: str
    seed: int
    inputs: Mapping[str, Path]
    manifest: Path
    partial: Path
    fingerprint: str


def answer(
    checkpoint: Path,
    records: Path,
    module: str,
    settings: dict[str, Any],
    *,
    seed: int,
    dtype: str,
    threads: int,
    answers: Path,
    provenance: Path,
    inputs: Mapping[str, Path] | None = None,
) -> None:
    """Let `checkpoint` answer the benchmark `module` over `records`.

    inputs: the further files that the benchmark reads, by the names in its `Settings.inputs()`.
    Writes `answers` (JSON lines: id, variant, response, tokens, finish, truncated) and `provenance` (how they were
    made). Finished answers of an interrupted run, kept in `<answers>.partial`, are not made again if nothing
    that decides them has changed.
    """
    import torch

    from bulwark.models import checkpoints
    from bulwark.models.embeddings import role_embedding_of
    from bulwark.prompts.builder import PromptBuilder

    torch.set_num_threads(threads)
    started = time.time()
    inputs = {name: Path(path) for name, path in (inputs or {}).items()}
    benchmark = benchmarks.module_of(module)
    parsed = validated(benchmark.Settings, settings, f"settings of the benchmark {module}")
    manifest, folder, template = manifests.open_manifest(checkpoint)
    device, dtype = checkpoints.device_and_dtype(dtype)
    model = checkpoints.load_model(folder, dtype=dtype, device=device).eval()
    tokenizer = checkpoints.load_tokenizer(folder)
    longest = parsed.decoding.max_prompt_tokens if hasattr(benchmark, "prompts") else None
    builder = PromptBuilder(tokenizer, template, role_embedding_of(model).num_embeddings, longest)
    partial = answers.with_name(answers.name + ".partial")
    settled = {
        "checkpoint": files.digest(manifest),
        "records": files.digest(records),
        "settings": settings,
        "prompt": builder.digest,
        "dtype": dtype,
        "seed": seed,
        "inputs": {name: files.digest(path) for name, path in inputs.items()},
    }
    examinee = Examinee(
        model, tokenizer, template, builder, device, seed, inputs, manifest, partial, files.digest(settled)
    )
    known = benchmark.load(records)
    if hasattr(benchmark, "answers"):
        rows = benchmark.answers(examinee, known, parsed)
    else:
        rows = generated(examinee, benchmark, known, parsed)
    files.write_text(answers, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    told = {
        **settled,
        "template": template,
        "device": device,
        "answers": len(rows),
        "truncated_prompts": sum(row["truncated"] for row in rows),
        "wall_seconds": round(time.time() - started, 1),
        **manifests.provenance(),
    }
    files.write_text(provenance, json.dumps(told, indent=1) + "\n")
    partial.unlink(missing_ok=True)
    log.info("%d answers in %.0f s", len(rows), time.time() - started)


def generated(examinee: Examinee, benchmark: Any, records: Sequence[Any], settings: Closed) -> list[dict[str, Any]]:
    """The rows of a benchmark with `prompts`: one generated answer per record and variant."""
    from bulwark.models import generation

    prompts = [
        ((record.id, variant), examinee.builder.prompt(turns))
        for record in records
        for variant, turns in benchmark.prompts(record, settings).items()
    ]
    produced = generation.generate(
        examinee.model,
        [(json.dumps(key), prompt) for key, prompt in prompts],
        settings.decoding,
        stop_ids=examinee.builder.stop_ids,
        pad_id=examinee.builder.pad_id,
        tokenizer=examinee.tokenizer,
        seed=examinee.seed,
        partial=examinee.partial,
        fingerprint=examinee.fingerprint,
    )
    return [
        {**row.as_dict(), "id": record_id, "variant": variant}
        for ((record_id, variant), _), row in zip(prompts, produced, strict=True)
    ]
