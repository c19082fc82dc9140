"""Does the rotation last? A checkpoint's hidden states against the vanilla model's, by layer (ASIDE, Sec. 6.4).

At the last token of SEP's prompts with the probe in the data, from which the response begins, the cosine between the
residual stream of this checkpoint and that of a reference that was trained alike without roles (`of: vanilla`), at
every row: 0 are the embeddings, which ASIDE has turned by a quarter there, the last one is after the final norm. If
later layers undid the rotation, it would come near that of two vanilla models. (arXiv 2503.10566; 100 prompts.)
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from bulwark.benchmarks import sep
from bulwark.evaluation import benchmark
from bulwark.evaluation.metrics import Metric, Row, by_layer, of_layers
from bulwark.interpretability.base import Compared, OfDrawnRecords
from bulwark.models.answers import ANSWER

if TYPE_CHECKING:
    from bulwark.evaluation.examinee import Examinee

METRICS: dict[str, bool | None] = {"cosine_mean": None, "cosine_0": None, "cosine_last": None}
Record = sep.Record


class Settings(Compared):
    """records: how many are drawn, without replacement. of: the recipe whose checkpoint is the reference."""

    records: int = Field(100, ge=1)
    of: str = "vanilla"
    seed: int = 42


class Benchmark(OfDrawnRecords):
    schema = Record
    metrics = METRICS

    def answers(self, examinee: Examinee, records: Sequence[sep.Record]) -> list[Row]:
        """The cosine at every row, as JSON. The reference is opened after this checkpoint is measured."""
        from torch.nn.functional import cosine_similarity

        from bulwark.models.open import LanguageModel, open_model

        def states(model: LanguageModel):
            prompts = [sep.prompt_and_probe(record, model.builder)[0] for record in records]
            return prompts, model.residuals(prompts, keep=True, final_norm=True).rows

        prompts, own = states(examinee.language_model)
        reference = open_model(
            examinee.inputs["reference"],
            examinee.language_model.dtype,
            max_tokens=examinee.builder.max_tokens,
            loading=examinee.language_model.loading,
        )
        _, theirs = states(reference)
        cosines = cosine_similarity(own.double(), theirs.double(), dim=-1)  # [records, rows]
        return [
            benchmark.measured(record.id, json.dumps(of_record), truncated=prompt.truncated)
            for record, prompt, of_record in zip(records, prompts, cosines.tolist(), strict=True)
        ]

    def score(self, record: sep.Record, responses: Mapping[str, str]) -> Row:
        """One row: the cosine at each row of the residual stream, at the last one, and the mean."""
        cosines = json.loads(responses[ANSWER])
        mean = sum(cosines) / len(cosines)
        return {**by_layer("cosine", cosines), "cosine_last": cosines[-1], "cosine_mean": mean}

    def aggregate(self, rows: Sequence[Row]) -> dict[str, Metric]:
        """The cosine at every row; those of METRICS first."""
        return super().aggregate(rows) | of_layers(rows, {"cosine": None})
