"""Pre-training: a new model from its configuration, trained on conversations; how the miniature gets its base model."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bulwark.training.settings import TrainingSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)


def pretrain(
    config: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    template: str,
    data: Mapping[str, Path],
    training: TrainingSettings,
    *,
    seed: int,
    threads: int,
    output: Path,
) -> None:
    """Train a causal LM from random weights on the conversations in data["train"] and save it.

    config: a transformers configuration as plain data, with its `model_type`.
    Writes a Hugging Face folder around the manifest `output`. The weights are a function of configuration, data,
    settings and seed; an interrupted run resumes. Raises RecordError for unusable data.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from bulwark import files
    from bulwark.data.records import read_records
    from bulwark.errors import of_record
    from bulwark.models import checkpoints, manifests
    from bulwark.models.anatomy import positions_of
    from bulwark.models.embeddings import install
    from bulwark.models.open import prompt_limit
    from bulwark.prompts.builder import PromptBuilder
    from bulwark.training import loop
    from bulwark.training.checks.remeasured import measure_again

    started = time.time()
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    attention = checkpoints.attention_options(training.attention)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config), **attention)
    embedding = install(model, {"method": "vanilla"})
    limit = prompt_limit(positions_of(model), training.max_tokens, 0, "the base model")
    builder = PromptBuilder(tokenizer, template, embedding.num_embeddings, limit, roles=embedding.roles)
    examples = {
        split: [
            of_record(record.id, builder.example, record.turns, training.loss_on)
            for record in read_records(data[split])
        ]
        for split in ("train", "validation")
    }
    log.info("Pre-training %d parameters on %d examples.", model.num_parameters(), len(examples["train"]))
    described = {
        "config": dict(config),
        "training": training.model_dump(mode="json"),
        "seed": seed,
        "data": {split: files.digest(path) for split, path in data.items()},
        "prompt": builder.digest,
    }
    state = output.parent / "training"
    trained = loop.train(
        model,
        examples["train"],
        examples["validation"],
        training,
        seed=seed,
        state=state,
        fingerprint={key: value for key, value in described.items() if key != "training"},
        pad_id=builder.pad_id,
    )
    checkpoints.save_model(trained.model, tokenizer, output.parent)
    report: dict[str, Any] = {
        "template": template,
        "settings": described,
        "training": asdict(trained.report),
        "measured_again": measure_again(output.parent, trained.model, trained.judged, training),
        "wall_seconds": round(time.time() - started, 1),
        "provenance": manifests.provenance(),
    }
    manifests.write_manifest(output, report)
    shutil.rmtree(state, ignore_errors=True)
