"""Where a checkpoint stands on trait vectors, over a data set: its own answers against those of the data set.

The projection difference of persona vectors (Chen et al. 2025, arXiv 2507.21509) and, from the code of PIS (Guan et
al., arXiv 2609.10142), the reference of state-aware training. The checkpoint answers each conversation's prompt
greedily, and p = v · mean h_l over the response's tokens is taken of its answer (`ref_projection`) and of the data
set's (`current_projection`), which is the p of a training's step 0: prompts, tokens and mask are training's own.
"""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from bulwark import files, seals
from bulwark.data.records import Conversation, read_records
from bulwark.errors import BulwarkError, ConfigurationError, of_record
from bulwark.models import manifests
from bulwark.models.decoding import Decoding
from bulwark.models.open import open_model
from bulwark.models.placing.loading import Loading
from bulwark.settings import Closed, validated
from bulwark.steering.settings import VectorSettings
from bulwark.steering.vectors.data_screening import screened

if TYPE_CHECKING:
    from torch import Tensor, nn

    from bulwark.models.generation import Answer
    from bulwark.prompts.builder import Prompt
    from bulwark.steering.screening.split import SplitModel

log = logging.getLogger(__name__)

EMPTY = "empty baseline answer"
_COLUMNS = ("ref", "current", "response", "prompt")


class ProjectionSettings(Closed):
    """What is projected on what.

    vectors: with a single layer. mode: "response_mean", over the tokens of the response, or "prompt_last", at the token
        before it, where the two projections are equal and nothing is generated. names: of the traits in the columns.
    max_tokens: longest text, as `training.max_tokens` of the training that compares itself with this; None: no limit.
    max_new_tokens: longest answer of the checkpoint. subset: conversations of screening's cheap estimate.
    """

    vectors: VectorSettings
    mode: Literal["response_mean", "prompt_last"] = "response_mean"
    names: tuple[str, ...] | None = None
    max_tokens: int | None = Field(None, ge=2)
    max_new_tokens: int = Field(1024, ge=1)
    subset: int = Field(200, ge=1)

    @model_validator(mode="after")
    def _consistent(self) -> ProjectionSettings:
        if len(self.vectors.layers) != 1:
            raise ValueError("a projection is taken at one layer; name one in vectors.layers")
        if not len(set(self.columns())) == len(self.columns()) == len(self.vectors.traits):
            raise ValueError("names are one per trait, all different")
        return self

    def columns(self) -> tuple[str, ...]:
        """The names of the traits in the columns."""
        return self.names or self.vectors.traits


@dataclass(frozen=True)
class Projected:
    """One text on k directions: response, the mean over its response's tokens, [k]; prompt, at the token before, [k].

    n_prompt: tokens before the (last) response; n_response: tokens of all responses, as they are in the loss.
    """

    response: list[float]
    prompt: list[float]
    n_prompt: int
    n_response: int


def read_projections(path: Path) -> dict[str, dict[str, Any]]:
    """The rows of a projections file by id, with the columns of `rows_of`. Raises BulwarkError for any other file."""
    import pyarrow
    from pyarrow import parquet

    try:
        return {row["id"]: row for row in parquet.read_table(seals.checked(path)).to_pylist()}
    except (OSError, KeyError, pyarrow.ArrowException) as error:
        raise BulwarkError(f"{path}: not a file of projections ({error}). Delete it, and it is made again.") from None


def comparable(
    vectors: VectorSettings, max_tokens: int | None, mode: str = "response_mean", **others: Any
) -> dict[str, Any]:
    """What has to be the same for projections to be compared, row by row: {name: value}. See `check_projections`.

    others: the records (their digest, or data set and split), and the digests of the files of vectors.
    """
    chosen = {f"vectors.{name}": value for name, value in vectors.model_dump(mode="json").items()}
    return {**chosen, "max_tokens": max_tokens, "mode": mode, **others}


def made_from(path: Path) -> dict[str, Any]:
    """What a file of projections records of how it was made, as `comparable` names it. Raises BulwarkError for none."""
    import pyarrow
    from pyarrow import parquet

    try:
        description = json.loads(parquet.read_schema(seals.checked(path)).metadata[b"description"])
        settings = validated(ProjectionSettings, description["settings"], str(path))
        others = {"records": description["records"], "vector_files": description["vectors"]["files"]}
    except (OSError, KeyError, TypeError, ValueError, pyarrow.ArrowException) as error:
        raise BulwarkError(
            f"{path}: does not say how it was made ({error}). Delete it, and it is made again."
        ) from None
    return comparable(settings.vectors, settings.max_tokens, settings.mode, **others)


def check_projections(name: str, made: Mapping[str, Any], needed: Mapping[str, Any], where: str) -> None:
    """Raise ConfigurationError unless the projections `name` were made of all that they are compared with.

    made, needed: as `comparable` gives them. where: the file or setting that the message begins with.
    """
    for what, ours in needed.items():
        if made[what] != ours:
            raise ConfigurationError(
                f"{where}: the projections were made with other {what} ({made[what]}) than they are compared with "
                f"({ours}). Change config/projections/{name}.yaml or what uses it so that they agree: comparisons are "
                "row by row, of the same tokens, at one layer."
            )


def project(
    checkpoint: Path,
    records: Path,
    vectors: Mapping[str, Path],
    settings: Mapping[str, Any],
    *,
    seed: int,
    dtype: str,
    threads: int,
    output: Path,
    screening: Path,
    code: str = "",
    loading: Loading | None = None,
) -> None:
    """Project the data set `records` and the answers of `checkpoint` to it; write `output` (parquet) and `screening`.

    vectors: {trait: file}. The checkpoint's finished answers are kept in `<output>.partial`, from which a run of the
    same code (a digest) that was interrupted goes on. loading: how the model's weights are held. Raises RecordError for
    records that are no conversations ending with a response.
    """
    import torch

    from bulwark.steering.vectors.fusion import load_fused
    from bulwark.steering.vectors.storage import read
    from bulwark.training.finetuning import Examples, examples_of

    started = time.time()
    parsed = validated(ProjectionSettings, settings, "settings of the projection")
    subject = open_model(checkpoint, dtype, max_tokens=parsed.max_tokens, threads=threads, loading=loading)
    model, builder, layer = subject.model, subject.builder, parsed.vectors.layer
    fused = load_fused(parsed.vectors, vectors, model, subject.description["digest"])
    each = [read(vectors[trait], parsed.vectors.pool)[0][layer] for trait in parsed.vectors.traits]
    directions = torch.stack([fused.at[layer], *each])
    examples = examples_of(read_records(records, Conversation), builder)
    conversations: Any = examples.records  # of the others training learns nothing either
    kept = output.with_name(f"{output.name}.partial")
    answers: dict[str, Answer] = {}
    if parsed.mode == "response_mean":
        asked = [(one.id, of_record(one.id, builder.prompt, one.turns[:-1])) for one in conversations]
        decoding = Decoding(max_new_tokens=parsed.max_new_tokens)
        generated = subject.generate(
            asked, decoding, seed=seed, partial=kept, fingerprint=subject.fingerprint(code=code)
        )
        answers = {answer.id: answer for answer in generated}
    responses = {key: answer.response for key, answer in answers.items() if answer.response}
    answered = [with_response(c, responses[c.id]) for c in conversations if c.id in responses]
    own_examples = examples_of(answered, builder)

    def projected(part: Examples) -> dict[str, Projected]:
        projected = project_texts(model, part.prompts, directions, layer=layer, pad_id=builder.pad_id)
        return {record.id: row for record, row in zip(part.records, projected, strict=True)}

    current, own = projected(examples), projected(own_examples)
    truncated = {c.id: prompt.truncated for c, prompt in zip(conversations, examples.prompts, strict=True)}
    rows = rows_of(conversations, current, own, answers, truncated, parsed)
    _refuse_undefined(rows, f"{checkpoint}, layer {layer}")
    description = {
        "checkpoint": subject.description,
        "records": files.digest(records),
        "vectors": fused.report,
        "settings": parsed.model_dump(mode="json"),
        "dtype": str(model.dtype),
        "seed": seed,
    }
    _write_table(output, rows, description)
    counts = {
        "conversations": len(rows),
        "left_out_without_response": examples.left_out,
        "excluded": dict(Counter(row["excluded"] for row in rows if row["excluded"])),
        "truncated": sum(row["truncated"] for row in rows),
        "baseline_at_length_limit": sum(row["baseline_finish"] == "length" for row in rows),
        "baseline_truncated": own_examples.truncated,
    }
    summary = {
        **description,
        "counts": counts,
        **screened(rows, parsed.columns(), directions.norm(dim=1).tolist(), parsed.subset),
        "provenance": manifests.provenance(started),
    }
    files.write_text(screening, json.dumps(summary, indent=1, allow_nan=False) + "\n")
    kept.unlink(missing_ok=True)
    log.info("%d conversations in %.0f s: %s", len(rows), time.time() - started, counts)


def with_response(conversation: Conversation, text: str) -> Conversation:
    """The conversation with another last response."""
    last = conversation.turns[-1].model_copy(update={"text": text})
    return conversation.model_copy(update={"turns": (*conversation.turns[:-1], last)})


def project_texts(
    model: nn.Module,
    prompts: Sequence[Prompt],
    directions: Tensor,
    *,
    layer: int,
    pad_id: int,
    token_budget: int | None = None,
) -> list[Projected]:
    """Training examples, in order, on `directions` [k, hidden]: dot products with h_l, computed longest texts first.

    token_budget: rows times longest text of a batch; it is halved when memory runs out. Raises BulwarkError if it does
    for a single text, ConfigurationError for a layer outside 1 … N-1.
    """
    import torch

    from bulwark.models.batching import in_batches, pass_token_budget, progress
    from bulwark.steering.screening.split import SplitModel

    split = SplitModel(model, layer)
    directions = directions.float().to(model.device)
    by_number: dict[int, Projected] = {}

    def work(batch: list[int]) -> None:
        projected = _batch_projected(split, [prompts[number] for number in batch], directions, pad_id)
        by_number.update(zip(batch, projected, strict=True))
        advance(len(batch))

    with torch.inference_mode(), progress(len(prompts), 0) as advance:
        in_batches(
            [len(prompt.ids) for prompt in prompts],
            work,
            token_budget or pass_token_budget(model.device),
            lambda number: f"text of {len(prompts[number].ids)} tokens",
            "Lower max_tokens. ",
        )
    return [by_number[number] for number in range(len(prompts))]


def _batch_projected(split: SplitModel, prompts: list[Prompt], directions: Tensor, pad_id: int) -> list[Projected]:
    """As `project_texts`, for one batch, which training's own collation makes."""
    import torch

    from bulwark.steering.intervention import token_mask
    from bulwark.training.batches import StepBatches

    count = len(prompts)
    (batch,) = StepBatches(prompts, batch_size=count, micro_batch_size=count, pad_id=pad_id).of_step(0)
    batch = batch.to(directions.device)
    numbers = [row[0] for row in batch.rows]
    hidden = split.trunk(batch).to(directions.device)  # [batch, seq, hidden]
    mask = token_mask(batch, "response")
    row, place = mask.nonzero(as_tuple=True)
    dots = (hidden[row, place].float() @ directions.T).double()  # [tokens, k]
    sums = torch.zeros(count, len(directions), dtype=dots.dtype, device=dots.device).index_add_(0, row, dots)
    tokens = mask.sum(dim=1)
    # Where the last response begins: as many tokens stand before it.
    starts = [[span.start for span in prompts[n].spans if span.role == "response"][-1] for n in numbers]
    last = torch.tensor(starts, device=dots.device) - 1
    before = hidden[torch.arange(count, device=dots.device), last].float() @ directions.T  # [batch, k]
    columns = (sums / tokens.unsqueeze(1)).tolist(), before.tolist(), starts, tokens.tolist()
    rows = dict(zip(numbers, map(Projected, *columns), strict=True))
    return [rows[number] for number in range(count)]


def rows_of(
    conversations: Sequence[Conversation],
    current: Mapping[str, Projected],
    baseline: Mapping[str, Projected],
    answers: Mapping[str, Any],
    truncated: Mapping[str, bool],
    settings: ProjectionSettings,
) -> list[dict[str, Any]]:
    """One row per conversation, in order.

    id, level (of its meta, or null); ref_projection, current_projection: the checkpoint's answer and the data set's, on
    the fused vector with its norm; response_projection, prompt_projection: the data set's answer in either mode; each
    also as `<column>_<name>` on every single vector. n_prompt, n_response, n_baseline: tokens; baseline_answer,
    baseline_finish: what the checkpoint said, and whether it came to an end ("stop") or to max_new_tokens ("length");
    truncated: max_tokens cut the data set's conversation; excluded: why there is no ref_projection, or null.
    """
    rows = []
    suffixes = ("", *(f"_{name}" for name in settings.columns()))
    for conversation in conversations:
        key = conversation.id
        answer, own, given = answers.get(key), baseline.get(key), current[key]
        row: dict[str, Any] = {"id": key, "level": conversation.meta.get("level")}
        undefined = [None] * len(suffixes)
        reference, present = own.response if own else undefined, given.response
        if settings.mode == "prompt_last":
            reference = present = given.prompt
        columns = zip(suffixes, reference, present, given.response, given.prompt, strict=True)
        for suffix, *values in columns:
            row |= {f"{name}_projection{suffix}": value for name, value in zip(_COLUMNS, values, strict=True)}
        row |= {
            "n_prompt": given.n_prompt,
            "n_response": given.n_response,
            "n_baseline": own.n_response if own else None,
            "baseline_answer": answer.response if answer else None,
            "baseline_finish": answer.finish if answer else None,
            "truncated": truncated[key],
            "excluded": EMPTY if answer and not answer.response else None,
        }
        rows.append(row)
    return rows


def _refuse_undefined(rows: Sequence[Mapping[str, Any]], where: str) -> None:
    """Raise BulwarkError if projections are not finite."""
    broken = [
        row["id"]
        for row in rows
        if any("projection" in key and value is not None and not math.isfinite(value) for key, value in row.items())
    ]
    if broken:
        raise BulwarkError(
            f"{where}: the hidden states of {len(broken)} of {len(rows)} conversations are not finite (one is "
            f'"{broken[0]}"). Run the model in bfloat16 or float32, or look whether the checkpoint is broken.'
        )


def _write_table(path: Path, rows: Sequence[Mapping[str, Any]], description: Mapping[str, Any]) -> None:
    import pyarrow
    from pyarrow import parquet

    numbers = all(isinstance(row["level"], int | None) for row in rows)
    if not numbers:
        rows = [{**row, "level": str(row["level"])} for row in rows]
    kinds = {
        "level": pyarrow.int64() if numbers else pyarrow.string(),
        "truncated": pyarrow.bool_(),
        **dict.fromkeys(("id", "baseline_answer", "baseline_finish", "excluded"), pyarrow.string()),
        **dict.fromkeys(("n_prompt", "n_response", "n_baseline"), pyarrow.int64()),
    }
    fields = [(name, kinds.get(name, pyarrow.float64())) for name in rows[0]]
    schema = pyarrow.schema(fields, metadata={"description": json.dumps(description)})
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    parquet.write_table(pyarrow.Table.from_pylist(rows, schema=schema), temporary)
    os.replace(temporary, path)
