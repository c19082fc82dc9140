"""Where the response looks: attention at the last token of a prompt, by part of the prompt and layer.

SEP's prompts with the probe in the data. The parts: the instruction's text, the data's text without the probe, the
probe, and the rest, which is the template's. A part's share is the sum over its tokens, averaged over heads; the four
add up to 1. (After the notebook on attention in the authors' repository, arXiv 2503.10566, which does not run.)
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from bulwark.benchmarks import sep
from bulwark.evaluation import benchmark
from bulwark.evaluation.metrics import Metric, Row, of_layers
from bulwark.interpretability.base import OfDrawnRecords
from bulwark.models.answers import ANSWER
from bulwark.settings import Closed

if TYPE_CHECKING:
    from bulwark.evaluation.examinee import Examinee

PARTS = ("probe", "data", "instruction", "template")
METRICS: dict[str, bool | None] = {f"{part}_mean": None for part in PARTS}
Record = sep.Record


class Settings(Closed):
    """records: how many are drawn, without replacement."""

    records: int = Field(100, ge=1)
    seed: int = 42


class Benchmark(OfDrawnRecords):
    schema = Record
    metrics = METRICS

    def answers(self, examinee: Examinee, records: Sequence[sep.Record]) -> list[Row]:
        """The share of every part at every layer, as JSON."""
        from bulwark.interpretability.attention import attention_to_parts
        from bulwark.prompts.places import places_of_turn

        made = [sep.prompt_and_probe(record, examinee.builder) for record in records]
        parts = []
        for prompt, probe in made:
            instruction, data = (places_of_turn(prompt, turn) for turn in (0, 1))
            text = {*instruction, *data}
            template = [place for place in range(len(prompt.ids)) if place not in text]
            rest = [place for place in data if place not in set(probe)]
            parts.append({"probe": probe, "data": rest, "instruction": instruction, "template": template})
        prompts = [prompt for prompt, _ in made]
        shares = attention_to_parts(examinee.model, prompts, parts, examinee.builder.pad_id)
        return [
            benchmark.measured(record.id, json.dumps(of_record), truncated=prompt.truncated)
            for record, prompt, of_record in zip(records, prompts, shares, strict=True)
        ]

    def score(self, record: sep.Record, responses: Mapping[str, str]) -> Row:
        """One row: the share of each part at each layer, counted from 1 as blocks are, and its mean over the layers."""
        row: Row = {}
        for part, values in json.loads(responses[ANSWER]).items():
            row |= {f"{part}_{layer}": value for layer, value in enumerate(values, start=1)}
            row[f"{part}_mean"] = sum(values) / len(values)
        return row

    def aggregate(self, rows: Sequence[Row]) -> dict[str, Metric]:
        """The shares at every layer; their means first."""
        return super().aggregate(rows) | of_layers(rows, dict.fromkeys(PARTS))
