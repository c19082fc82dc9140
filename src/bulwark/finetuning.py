"""What steps that fine-tune share: open the parent, give tokens their roles, train, save.

`finetune` is the whole path; a step adds what is its own as an embedding description and an `Objective`.
Heavy imports stand inside the functions, because the workflow reads the settings when it plans.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from bulwark.settings import Closed
from bulwark.training.settings import TrainingSettings

if TYPE_CHECKING:
    from bulwark.jobs import Job
    from bulwark.training.objectives import Objective

log = logging.getLogger(__name__)


class FineTuningSettings(Closed):
    """A data set of conversations and how to train on it."""

    data: str
    training: TrainingSettings

    def inputs(self) -> dict[str, str]:
        """The files this step reads, relative to results/."""
        return {split: f"data/{self.data}/{split}.jsonl" for split in ("train", "validation")}


def finetune(
    job: Job,
    settings: FineTuningSettings,
    embedding: dict[str, Any] | None,
    objective: Callable[[int], Objective] | None = None,
) -> dict[str, Any]:
    """Fine-tune the parent of `job` and save the result beside its manifest.

    embedding: the role embedding to install (see `bulwark.embeddings.install`); None keeps the parent's.
    objective: builds the training objective from the number of optimizer steps per epoch; None trains plainly.

    Returns what the manifest tells: the training report, the prompt template and how many examples were cut.
    Raises RecordError for unusable data, BulwarkError for settings that do not fit the machine.
    """
    import torch

    from bulwark import checkpoints, manifests
    from bulwark.embeddings import install, role_embedding_of
    from bulwark.prompts import PromptBuilder
    from bulwark.records import read_records
    from bulwark.training import engine, loop

    training = settings.training
    parent, folder, template = manifests.open_manifest(job.parent)
    with engine.sharded_loading(training):
        model = checkpoints.load_model(folder, dtype=engine.parameter_dtype(training), device="cpu")
    tokenizer = checkpoints.load_tokenizer(folder)
    if embedding is not None:
        torch.manual_seed(job.seed)  # learned parts of the embedding start differently at each seed
        install(model, embedding)
    builder = PromptBuilder(tokenizer, template, role_embedding_of(model).num_embeddings, training.max_tokens)
    examples = {
        split: [builder.example(record.turns, training.loss_on) for record in read_records(job.inputs[split])]
        for split in ("train", "validation")
    }
    truncated = {split: sum(example.truncated for example in part) for split, part in examples.items()}
    log.info("%d training and %d validation examples; truncated: %s", *map(len, examples.values()), truncated)

    trained = loop.train(
        model,
        examples["train"],
        examples["validation"],
        training,
        seed=job.seed,
        state=job.state,
        fingerprint={
            "settings": settings.model_dump(mode="json"),
            "embedding": embedding,
            "parent": manifests.digest(parent),
            "data": {name: manifests.digest(path) for name, path in job.inputs.items()},
            "prompt": builder.digest,
        },
        pad_id=builder.pad_id,
        objective=objective,
    )
    if trained.main_process:
        checkpoints.save_model(trained.model, tokenizer, job.folder)
    return {
        "main_process": trained.main_process,
        "template": template,
        "prompt_digest": builder.digest,
        "examples": {split: len(part) for split, part in examples.items()},
        "truncated": truncated,
        "training": asdict(trained.report),
    }
