"""What a benchmark is: a class with defaults. Free of torch at import, because planning reads every benchmark.

A module of `bulwark.benchmarks` has

    METRICS      {metric: whether higher is better, null for neither}, the first being the headline
    Settings     what can be set; holds `decoding` where text is generated, and under `scoring` what only scoring reads.
                 `inputs()`: the files under results/ that answering reads beside checkpoint and records, as path
                 templates with `{model}`, `{recipe}`, `{parent}` (the recipe before its last step) and `{seed}`; that
                 of `scoring`: those that scoring reads, in `read`. `scoring.files()`: files of the user's, likewise
    Record       the schema of its data
    Benchmark    a subclass of the one below

and writes in `Benchmark` what is its own: as a rule `prompts` and `score`.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from bulwark.data.records import read_records
from bulwark.errors import ConfigurationError, of_record
from bulwark.evaluation.metrics import Groups, Metric, Row, grouped, metrics
from bulwark.models.answers import ANSWER
from bulwark.settings import Closed

if TYPE_CHECKING:
    from bulwark.evaluation.examinee import Examinee
    from bulwark.judges import JudgeSettings


def measured(record_id: str, response: str, *, tokens: int = 0, truncated: bool = False) -> Row:
    """The line of an answers file for a record whose result is no text but, say, numbers written as JSON."""
    line = {"id": record_id, "variant": ANSWER, "response": response, "tokens": tokens}
    return {**line, "finish": "stop", "truncated": truncated}


class Benchmark(ABC):
    """A benchmark with its settings.

    schema, metrics: the module's `Record` and `METRICS`. groups: columns by which the metrics are broken down.
    means: {name: column}, of which the mean over all rows is reported, without an error.
    prompts(record): {variant: turns}, the prompts that a checkpoint answers. Without it, `answers` is overridden.
    requests(record, responses): only if answers are judged: what is asked of the judge under `scoring.judge` of the
    settings, one `judges.Request` each, keys unique within a record.
    read(inputs): only if scoring needs further files: called with those that `inputs()` of the settings under `scoring`
    names, before `requests` and `score`.
    """

    schema: ClassVar[type[Closed]]
    metrics: ClassVar[Mapping[str, bool | None]]
    groups: ClassVar[tuple[str, ...]] = ()
    means: ClassVar[Mapping[str, str]] = {}
    prompts: Any = None
    requests: Any = None
    read: Any = None

    def __init__(self, settings: Any) -> None:
        self.settings = settings

    @property
    def module(self) -> str:
        """The name of its module, by which it is found."""
        return type(self).__module__.rpartition(".")[2]

    def load(self, path: Path) -> list[Any]:
        """Read the records of a data file. Raises RecordError for the first that is broken."""
        return read_records(Path(path), schema=self.schema)

    def variants(self, record: Any) -> list[str]:
        """The variants in which a record is answered."""
        return list(self.prompts(record)) if self.prompts else [ANSWER]

    def fact(self, record: Any) -> str | None:
        """What a record asks for, if others ask for it in other words: they are one cluster in all statistics."""
        return None

    def answers(self, examinee: Examinee, records: Sequence[Any]) -> list[Row]:
        """The lines of the answers file (`models.answers.Answer`): one generated answer per record and variant.

        A benchmark that needs more of the model than text overrides this, with one line per record (`measured`).
        """
        prompts = [
            ((record.id, variant), of_record(record.id, examinee.builder.prompt, turns))
            for record in records
            for variant, turns in self.prompts(record).items()
        ]
        produced = examinee.generate([(json.dumps(key), prompt) for key, prompt in prompts], self.settings.decoding)
        return [
            replace(answer, id=record_id, variant=variant).as_dict()
            for ((record_id, variant), _), answer in zip(prompts, produced, strict=True)
        ]

    @abstractmethod
    def score(self, record: Any, responses: Mapping[str, str]) -> Row:
        """One flat row of a record, from {variant: response}.

        With `requests` it takes the record's judgements, {key of the request: Judgement}, as a third argument.
        """

    def aggregate(self, rows: Sequence[Row]) -> dict[str, Metric]:
        """All metrics; one that no record counts for is null, n 0."""
        return metrics(rows, self.metrics)

    def breakdowns(self, rows: Sequence[Row]) -> dict[str, Groups]:
        """{grouping: {group: {metric: Metric}}}."""
        return {column: grouped(rows, lambda row, key=column: row[key], self.metrics) for column in self.groups}

    def reported(self, rows: Sequence[Row]) -> dict[str, Any]:
        """Further numbers, without an error."""
        return {name: sum(row[column] for row in rows) / len(rows) for name, column in self.means.items()}

    def judge(self, where: str = "") -> JudgeSettings | None:
        """Who judges the answers; None without `requests`. Raises ConfigurationError if the settings name nobody.

        Settings without `scoring` suffice for answering: the workflow leaves it out there.
        """
        if not self.requests:
            return None
        if self.settings.scoring is None:
            raise ConfigurationError(
                f'{where or f"settings of the benchmark {self.module}"}: the key "scoring" is missing. '
                f"The module {self.module} is judged: write `scoring: {{judge: {{kind: …}}}}`."
            )
        return self.settings.scoring.judge
