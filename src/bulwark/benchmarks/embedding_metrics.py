"""How far role and training move embeddings: instruction against data, and both against the base model's.

Row by row of the embedding, over the words of SEP's prompts, the metrics of the authors' embd_metrics.py: cosine,
Euclidean distance (l2) and the largest distance of a component (linf). Per record the mean over its distinct words of

    role_<measure>                 a word as an instruction against the same word as data
    instruction_moved_<measure>    as an instruction, this checkpoint against the base model
    data_moved_<measure>           as data, likewise

ASIDE's role_cosine is 0 by construction (with two roles), a vanilla model's 1. The distribution over the whole
vocabulary is reported beside them, with the statistics of the authors.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import Field

from bulwark.benchmarks import sep
from bulwark.evaluation import benchmark
from bulwark.evaluation.metrics import Row
from bulwark.interpretability.base import Compared, OfDrawnRecords
from bulwark.models.answers import ANSWER

if TYPE_CHECKING:
    from bulwark.evaluation.examinee import Examinee

KINDS = ("role", "instruction_moved", "data_moved")
METRICS: dict[str, bool | None] = {f"{kind}_{m}": None for kind in KINDS for m in ("cosine", "l2", "linf")}
Record = sep.Record


class Settings(Compared):
    """records: how many are drawn, without replacement. of: the recipe whose embeddings were before."""

    records: int = Field(1000, ge=1)
    of: str = "base"
    seed: int = 42


class Benchmark(OfDrawnRecords):
    schema = Record
    metrics = METRICS

    def answers(self, examinee: Examinee, records: Sequence[sep.Record]) -> list[Row]:
        """The means over the words of every record, as JSON; with the first one the distribution over all rows."""
        from bulwark.interpretability import distances
        from bulwark.models.open import open_model
        from bulwark.prompts.places import places_of_turn

        own, builder = examinee.model, examinee.builder
        before = open_model(
            examinee.inputs["reference"], examinee.language_model.dtype, loading=examinee.language_model.loading
        ).model
        compared = {"role": distances.of_roles(own)}
        compared["instruction_moved"] = distances.between(own, before, "instruction")
        compared["data_moved"] = distances.between(own, before, "data")
        columns = {f"{kind}_{m}": values for kind, of_kind in compared.items() for m, values in of_kind.items()}
        whole = {name: distances.summary(values) for name, values in columns.items()}
        lines = []
        for number, record in enumerate(records):
            prompt, _ = sep.prompt_and_probe(record, builder)
            words = sorted(
                {prompt.ids[p] % builder.vocabulary for turn in (0, 1) for p in places_of_turn(prompt, turn)}
            )
            result: dict[str, Any] = {name: float(values[words].mean()) for name, values in columns.items()}
            if not number:
                result["vocabulary"] = whole
            lines.append(benchmark.measured(record.id, json.dumps(result), truncated=prompt.truncated))
        return lines

    def score(self, record: sep.Record, responses: Mapping[str, str]) -> Row:
        """One row: the means over the record's words; with the first record the distribution over the vocabulary."""
        return {"vocabulary": None, **json.loads(responses[ANSWER])}

    def reported(self, rows: Sequence[Row]) -> dict[str, Any]:
        """Of each metric the statistics over the whole vocabulary."""
        return {"vocabulary": next(row["vocabulary"] for row in rows if row["vocabulary"])}
