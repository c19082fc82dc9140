"""What steps that fine-tune share: open the parent, give tokens their roles, train, save.

`finetune` is the whole path; what a step and its observers add comes from `bulwark.steps.fine_tune`. Heavy imports
stand inside the functions, because the workflow reads the settings when it plans.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from bulwark.data.records import ROLES, EmbeddingRole
from bulwark.errors import BulwarkError, RecordError
from bulwark.settings import Closed
from bulwark.training.settings import TrainingSettings

if TYPE_CHECKING:
    from torch import nn

    from bulwark.data.records import Conversation, Passage, Tokenised
    from bulwark.jobs.job import Job
    from bulwark.prompts.builder import Prompt, PromptBuilder
    from bulwark.training.batches import StepBatches
    from bulwark.training.objectives import Objective
    from bulwark.training.observers import Observer

log = logging.getLogger(__name__)


class FineTuningSettings(Closed):
    """A data set of conversations, of tokenised examples or of passages, and how to train on it.

    ignore_embedded: train without the intervention that the parent's folder carries, if it does (see
        `bulwark.steering.embedded`); the result is free of it.
    """

    data: str
    training: TrainingSettings
    ignore_embedded: bool = False

    def inputs(self) -> dict[str, str]:
        return {split: f"data/{self.data}/{split}.jsonl" for split in ("train", "validation")} | super().inputs()

    def written_as(self) -> str | None:
        """The prompt template in which conversations are trained on; None for the checkpoint's own."""
        return None


class RoleTraining(FineTuningSettings):
    """Fine-tuning that gives a model its roles.

    roles: that tokens can have besides that of responses, instruction and data among them, in the order in which the
        method counts them. A system turn is an instruction, and a tool's output data, to a model without the role.
    response_role: which of them response tokens are treated as.
    """

    roles: tuple[EmbeddingRole, ...] = Field(ROLES, exclude_if=lambda roles: roles == ROLES)
    response_role: EmbeddingRole = "data"

    @model_validator(mode="after")
    def _roles_fit(self) -> RoleTraining:
        twice = [role for role in self.roles if self.roles.count(role) > 1]
        if twice:
            raise ValueError(f'roles has "{twice[0]}" twice; write it once')
        missing = [role for role in ROLES if role not in self.roles]
        if missing:
            raise ValueError(f'roles lacks "{missing[0]}"; every model has {" and ".join(ROLES)}')
        if self.response_role not in self.roles:
            raise ValueError(
                f'response_role is "{self.response_role}", which is none of roles: {", ".join(self.roles)}'
            )
        return self

    def described_roles(self) -> dict[str, Any]:
        """Of the embedding's description; without `roles` where they are the two that every model has."""
        return {"response_role": self.response_role} | ({} if self.roles == ROLES else {"roles": list(self.roles)})


@dataclass(frozen=True)
class Course:
    """The training that lies ahead when its objective and observers are made.

    model: as loaded, before adapters and engine. records: those trained on; examples: the same as prompts, in the same
    order, which is what `Batch.rows` counts in. steps: optimizer steps per epoch and in total. builder: makes the
    examples. asked: makes prompts as the checkpoint is asked, where it is trained in another template; None for
    builder.
    """

    job: Job
    model: nn.Module
    records: list[Conversation] | list[Tokenised] | list[Passage]
    examples: list[Prompt]
    steps_per_epoch: int
    total_steps: int
    pad_id: int
    training: TrainingSettings
    builder: PromptBuilder
    method: str
    asked: PromptBuilder | None = None

    def examples_from(self, name: str, *, asked: bool = False) -> Examples:
        """The training examples of another data set that the step's settings name among their `inputs()`.

        They are made like those trained on; asked: like those that the checkpoint is asked. Raises RecordError for
        records that make none, naming the file.
        """
        from bulwark.data.records import read_training_records

        records = read_training_records(self.job.inputs[name])
        builder = self.asked if asked and self.asked is not None else self.builder
        examples = examples_of(records, builder, self.training.loss_on, self.method)
        if not examples.prompts:
            raise RecordError(f"{self.job.inputs[name]}: no record has a token to learn within training.max_tokens.")
        return examples

    def preferences_from(self, name: str, side: Literal["chosen", "rejected"]) -> Examples:
        """As `examples_from`, of a data set of preferences: each prompt with one of its two responses.

        Raises RecordError where a record makes no example, so that those of both sides stand in the same order.
        """
        from bulwark.data.records import Preference, read_records

        records = read_records(self.job.inputs[name], Preference)
        examples = examples_of([record.conversation(side) for record in records], self.builder, "response", self.method)
        if examples.left_out:
            raise RecordError(
                f"{self.job.inputs[name]}: of {examples.left_out} records the {side} response has no token within "
                "training.max_tokens. Raise it, or remove them."
            )
        return examples

    def batches(
        self,
        examples: Sequence[Prompt],
        stream: str,
        batch_size: int | None = None,
        micro_batch_size: int | None = None,
        group_by_length: bool | None = None,
    ) -> StepBatches:
        """Further batches for this rank beside those of the loop, endless, in an order of their own.

        stream: names the order, which depends on it and on the job's seed. What is left out is as in the settings.
        Raises ConfigurationError when the batch size does not divide into micro-batches over the ranks.
        """
        from bulwark.training.batches import training_batches
        from bulwark.training.engine import start_processes

        processes = start_processes()
        given = {
            "batch_size": batch_size,
            "micro_batch_size": micro_batch_size,
            "group_by_length": group_by_length,
        }
        asked = self.training.model_copy(update={key: value for key, value in given.items() if value is not None})
        return training_batches(
            examples,
            asked,
            seed=_seed_of(self.job.seed, stream),
            pad_id=self.pad_id,
            rank=processes.rank,
            ranks=processes.count,
            flatten="flash" in str(getattr(self.model.config, "_attn_implementation", "")),
        )


@dataclass(frozen=True)
class Examples:
    """What is trained on, in the order of the data set: records, and the same as prompts with labels.

    truncated: how many of them max_tokens cut. left_out: how many others there were with no token of a response left.
    """

    records: list[Conversation] | list[Tokenised] | list[Passage]
    prompts: list[Prompt]
    truncated: int
    left_out: int


def finetune(
    job: Job,
    settings: FineTuningSettings,
    embedding: dict[str, Any] | None = None,
    parts: Callable[[Course], tuple[Objective, Sequence[Observer]]] | None = None,
) -> dict[str, Any]:
    """Fine-tune the parent of `job` and save the result beside its manifest.

    embedding: the role embedding to install (see `bulwark.models.embeddings.install`); None keeps the parent's.
    parts: makes the objective and the observers, which may change the model before it is trained; None trains plainly.

    Returns what the manifest records: the training report, those of objective and observers, the prompt template and
    how many examples were cut, and the loss of what was saved. Raises RecordError for unusable data, BulwarkError for
    settings that do not fit the machine and for a saved model that is not the trained one.
    """
    import torch

    from bulwark import files
    from bulwark.data.records import Conversation, read_training_records
    from bulwark.models import checkpoints, manifests
    from bulwark.models.anatomy import positions_of
    from bulwark.models.embeddings import install, role_embedding_of
    from bulwark.models.folders.carried import carry_on
    from bulwark.models.open import prompt_limit
    from bulwark.prompts.builder import PromptBuilder
    from bulwark.training import engine, loop
    from bulwark.training.checks.remeasured import measure_again
    from bulwark.training.objectives import Objective

    training = settings.training
    parent, folder, template = manifests.open_manifest(job.parent)
    with engine.sharded_loading(training):
        model = checkpoints.load_model(folder, dtype=training.precision, device="cpu", attention=training.attention)
    tokenizer = checkpoints.load_tokenizer(folder)
    if embedding is not None:
        torch.manual_seed(job.seed)  # learned parts of the embedding start differently at each seed
        install(model, embedding)
    roles = role_embedding_of(model)
    limit = prompt_limit(positions_of(model), training.max_tokens, 0, f"{folder}")
    written = settings.written_as()
    asked = PromptBuilder(tokenizer, template, roles.num_embeddings, limit, roles=roles.roles)
    builder = asked
    if written is not None:
        builder = PromptBuilder(tokenizer, written, roles.num_embeddings, limit, roles=roles.roles)
    taken = {
        split: examples_of(read_training_records(job.inputs[split]), builder, training.loss_on, roles.method)
        for split in ("train", "validation")
    }
    examples = {split: part.prompts for split, part in taken.items()}
    if written is not None and not any(isinstance(record, Conversation) for record in taken["train"].records):
        raise RecordError(
            f"{job.inputs['train']}: no record is a conversation, so that none can be written in the template "
            f'"{written}". Leave the template out, or train on conversations.'
        )
    counts = {
        "examples": {split: len(part) for split, part in examples.items()},
        "truncated": {split: part.truncated for split, part in taken.items()},
        "left_out_without_response": {split: part.left_out for split, part in taken.items()},
    }
    log.info("; ".join(f"{name}: {count}" for name, count in counts.items()))
    for role in unseen(examples["train"], builder):
        log.warning("No training example has a token of the role %s, so the model does not learn what it means.", role)
    count = len(examples["train"])
    course = Course(
        job=job,
        model=model,
        records=taken["train"].records,
        examples=examples["train"],
        steps_per_epoch=training.steps_per_epoch(count),
        total_steps=training.total_steps(count),
        pad_id=builder.pad_id,
        training=training,
        builder=builder,
        method=roles.method,
        asked=asked,
    )
    objective, observers = parts(course) if parts is not None else (Objective(), ())
    trained = loop.train(
        model,
        examples["train"],
        examples["validation"],
        training,
        seed=job.seed,
        state=job.state,
        fingerprint={
            "settings": settings.model_dump(mode="json", exclude={"training"}),  # `train` adds those
            "embedding": embedding,
            "parent": files.digest(parent),
            "data": {name: files.digest(path) for name, path in job.inputs.items()},
            "prompt": builder.digest,
            "code": job.code,
        },
        pad_id=builder.pad_id,
        objective=objective,
        observers=observers,
    )
    names: list[str] = []
    if trained.main_process:
        names = carry_on(parent, job.folder)
        checkpoints.save_model(trained.model, tokenizer, job.folder)
        for part in (objective, *observers):
            part.write(job.folder)
        shutil.rmtree(job.folder / manifests.SNAPSHOTS, ignore_errors=True)  # of an earlier attempt
        for step, snapshot, observed in trained.snapshots:
            place = job.folder / manifests.SNAPSHOTS / str(step)
            carry_on(parent, place)
            checkpoints.save_model(snapshot, tokenizer, place)
            for part, at_step in zip([objective, *observers], observed, strict=True):
                part.write_snapshot(place, at_step)
    record = {
        "main_process": trained.main_process,
        "template": template,
        "prompt_digest": asked.digest,
        **({} if written is None else {"trained_in": {"template": written, "prompt_digest": builder.digest}}),
        "carried": names,
        **counts,
        "training": asdict(trained.report),
        **objective.report(),
        **{key: value for observer in observers for key, value in observer.report().items()},
    }
    if trained.main_process:
        record["measured_again"] = measure_again(job.folder, trained.model, trained.judged, training)
    return record


def unseen(examples: Sequence[Prompt], builder: PromptBuilder) -> list[str]:
    """The builder's roles that no token of any example has, but the two that every model has."""
    further = {role: builder.numbers[role] for role in builder.roles if role not in ROLES}
    return [role for role, number in further.items() if not any(number in prompt.roles for prompt in examples)]


def examples_of(
    records: Sequence[Conversation] | Sequence[Tokenised] | Sequence[Passage],
    builder: PromptBuilder,
    loss_on: Literal["response", "all"] = "response",
    method: str = "vanilla",
) -> Examples:
    """Make the training examples of conversations and passages, or take tokenised ones as they are, cut at max_tokens.

    Examples with no token to learn (every answer is marked so, or was cut away) are left out and counted.
    method: of the model's role embedding; tokenised examples have no roles, so that only "vanilla" can read them.
    Raises RecordError naming the record that cannot be used, BulwarkError for tokenised ones with another method.
    """
    from bulwark.data.records import Passage, Tokenised
    from bulwark.prompts.builder import IGNORED, PromptError

    kept: list[Any] = []
    prompts: list[Prompt] = []
    for record in records:
        try:
            if isinstance(record, Tokenised):
                prompt = _as_it_is(record, builder, loss_on, method)
            else:
                passage = isinstance(record, Passage)
                prompt = builder.passage(record.text) if passage else builder.example(record.turns, loss_on)
                prompt = None if all(label == IGNORED for label in prompt.labels[1:]) else prompt
        except PromptError as error:
            raise RecordError(f'The record "{record.id}" makes no example: {error}') from error
        if prompt is not None:
            kept.append(record)
            prompts.append(prompt)
    return Examples(kept, prompts, sum(prompt.truncated for prompt in prompts), len(records) - len(kept))


def _seed_of(seed: int, stream: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}/{stream}".encode()).digest()[:6], "big")


def _as_it_is(record: Tokenised, builder: PromptBuilder, loss_on: str, method: str) -> Prompt | None:
    """The example, or None if its labels are all -100 or were cut away (the first token's is never learned)."""
    from bulwark.prompts.builder import IGNORED, Prompt

    if method != "vanilla":
        raise BulwarkError(
            f'The data set is tokenised, so its tokens have no roles, which the embedding "{method}" needs. Train on '
            "the conversations themselves, or with a vanilla embedding."
        )
    if max(record.input_ids) >= builder.vocabulary:
        raise RecordError(
            f'The record "{record.id}" holds the id {max(record.input_ids)}, but the model\'s embedding has '
            f"{builder.vocabulary} rows: the data set was tokenised for another model."
        )
    ids, labels = list(record.input_ids)[: builder.max_tokens], list(record.labels)[: builder.max_tokens]
    if all(label == IGNORED for label in labels[1:]):
        return None
    truncated = len(ids) < len(record.input_ids)
    return Prompt(ids, ids if loss_on == "all" else labels, [0] * len(ids), [], "", truncated)
