"""A checkpoint answers a benchmark: prompts in, one line per answer out, resumable by record.

The dear half of an evaluation. The cheap half, scoring the answers, is `bulwark.benchmarks.score_file`.
"""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from typing import Any

from bulwark import benchmarks, manifests
from bulwark.settings import validated

log = logging.getLogger(__name__)


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
) -> None:
    """Generate the answers of `checkpoint` to every prompt of the benchmark `module` over `records`.

    Writes `answers` (JSON lines: id, variant, response, tokens, finish, truncated) and `provenance` (how they were
    made). Finished answers of an interrupted run, kept in `<answers>.partial`, are not generated again if nothing
    that decides them has changed.
    """
    import torch

    from bulwark import checkpoints, generation
    from bulwark.embeddings import role_embedding_of
    from bulwark.prompts import PromptBuilder

    torch.set_num_threads(threads)
    started = time.time()
    benchmark = benchmarks.module_of(module)
    parsed = validated(benchmark.Settings, settings, f"settings of the benchmark {module}")
    manifest, folder, template = manifests.open_manifest(checkpoint)
    device, dtype = checkpoints.device_and_dtype(dtype)
    model = checkpoints.load_model(folder, dtype=dtype, device=device).eval()
    tokenizer = checkpoints.load_tokenizer(folder)
    builder = PromptBuilder(
        tokenizer, template, role_embedding_of(model).num_embeddings, parsed.decoding.max_prompt_tokens
    )
    prompts = [
        ((record.id, variant), builder.prompt(turns))
        for record in benchmark.load(records)
        for variant, turns in benchmark.prompts(record, parsed).items()
    ]
    partial = answers.with_name(answers.name + ".partial")
    settled = {
        "checkpoint": manifests.digest(manifest),
        "records": manifests.digest(records),
        "settings": settings,
        "prompt": builder.digest,
        "dtype": dtype,
        "seed": seed,
    }
    generated = generation.generate(
        model,
        [(json.dumps(key), prompt) for key, prompt in prompts],
        parsed.decoding,
        stop_ids=builder.stop_ids,
        pad_id=builder.pad_id,
        tokenizer=tokenizer,
        seed=seed,
        partial=partial,
        fingerprint=manifests.digest(settled),
    )
    rows = []
    for key, produced in zip([key for key, _ in prompts], generated, strict=True):
        record_id, variant = key
        rows.append({**produced.as_dict(), "id": record_id, "variant": variant})
    manifests.write_text(answers, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    told = {
        **settled,
        "template": template,
        "device": device,
        "answers": len(rows),
        "truncated_prompts": sum(row["truncated"] for row in rows),
        "wall_seconds": round(time.time() - started, 1),
        **manifests.provenance(),
    }
    manifests.write_text(provenance, json.dumps(told, indent=1) + "\n")
    partial.unlink(missing_ok=True)
    log.info("%d answers in %.0f s", len(rows), time.time() - started)
