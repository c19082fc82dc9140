"""AlpacaEval (Li et al. 2023, github.com/tatsu-lab/alpaca_eval): is an answer preferred to that of a reference model?

805 instructions, of which 208 come with an input. Instruction and input stand apart in AlpacaFarm's file, so that the
input can have the role data; the reference set writes both as one text, with an empty line between them, and so does
the question to the judge. Each answer is compared with the reference's, in an order that a seed decides.

    win_rate                      mean preference: 1 ours, 0 the reference's, 0.5 a draw, between for a judge in doubt
    length_controlled_win_rate    what a regression says it were at equal lengths (Dubois et al. 2024, arXiv 2404.04475)

A judgement that fails has no preference. It is counted, and what the win rate were if all of these were lost or won is
reported beside it. The length-controlled rate needs a table from the Hub (`df_gamed.csv` of tatsu-lab/alpaca_eval):
name your copy under `length_control`; without it the rate is null, and the scores file says so.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bulwark.data.records import Turn, read_records
from bulwark.errors import RecordError
from bulwark.evaluation import benchmark
from bulwark.evaluation.metrics import Groups, Metric, Row, grouped, metric
from bulwark.judges import Judged, Judgement, Request
from bulwark.models.answers import ANSWER
from bulwark.models.decoding import Decoding
from bulwark.settings import Closed, Text

log = logging.getLogger(__name__)

METRICS = {"win_rate": True, "length_controlled_win_rate": True}
CRITERION = "preference"
NO_TABLE = "not computed: scoring.length_control names no table (df_gamed.csv of tatsu-lab/alpaca_eval on the Hub)"


class References(Closed):
    """The outputs of the model that is compared with: the split `split` of the data set `data`."""

    data: str
    split: str = "test"

    def inputs(self) -> dict[str, str]:
        """The file they come from, relative to results/."""
        return {"references": f"data/{self.data}/{self.split}.jsonl"}


class Scoring(Judged):
    """length_control: your copy of the table by which lengths are controlled; it belongs to the judge and the
    reference of AlpacaEval 2.0."""

    references: References
    length_control: str | None = None

    def files(self) -> dict[str, str]:
        """The files of the user's that scoring reads, by the key that names them."""
        return {"length_control": self.length_control} if self.length_control else {}


class Settings(Closed):
    """How the answers are made, who compares them, and with what."""

    decoding: Decoding = Decoding(max_new_tokens=1024)
    scoring: Scoring | None = None  # answering needs none


class Record(Closed):
    """An instruction, `input` its data if it has any, dataset: where the set took it from.

    reference: of a file of references, what that model answered; its instruction may hold the input.
    answer: what is right, for judges that compare with it.
    """

    id: str
    instruction: Text
    input: str = ""
    dataset: str | None = None
    reference: str | None = None
    answer: str | None = None


class Benchmark(benchmark.Benchmark):
    schema = Record
    metrics = METRICS

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._references: dict[str, tuple[int, str]] = {}

    def prompts(self, record: Record) -> dict[str, list[Turn]]:
        """The instruction, and its input as data."""
        turns = [Turn(role="instruction", text=record.instruction)]
        return {ANSWER: turns + ([Turn(role="data", text=record.input)] if record.input.strip() else [])}

    def read(self, inputs: Mapping[str, Path]) -> None:
        """The references: {whole instruction: (number in the file, what the reference answered)}."""
        for number, record in enumerate(read_records(inputs["references"], schema=Record)):
            if record.reference is None:
                raise RecordError(
                    f'{inputs["references"]}: the record "{record.id}" has no reference. Map the field under `fields`: '
                    "{reference: output}."
                )
            whole = whole_instruction(record)
            if whole in self._references:
                raise RecordError(f'{inputs["references"]}: two records have the instruction of "{record.id}".')
            self._references[whole] = (number, record.reference)

    def requests(self, record: Record, responses: Mapping[str, str]) -> list[Request]:
        """One comparison with the reference's answer to the same instruction."""
        whole, other = whole_instruction(record), self._reference(record)[1]
        return [Request(CRITERION, whole, responses[ANSWER], CRITERION, expected=record.answer, other=other)]

    def score(self, record: Record, responses: Mapping[str, str], judgements: Mapping[str, Judgement]) -> Row:
        """One row; null if the judgement failed."""
        value = judgements[CRITERION].value
        number, reference = self._reference(record)
        return {
            "win_rate": None if value is None else value / self.settings.scoring.judge.scale,
            "reference": number,
            "characters": len(responses[ANSWER]),
            "reference_characters": len(reference),
            "dataset": record.dataset or "unnamed",
            "input": "with" if record.input.strip() else "without",
        }

    def aggregate(self, rows: Sequence[Row]) -> dict[str, Metric]:
        """The win rate; the length-controlled one with the package's standard error."""
        table = self.settings.scoring.length_control
        controlled = length_controlled(rows, Path(table)) if table else (None, None, 0)
        value, stderr, count = controlled
        if not table:
            log.warning("length_controlled_win_rate: %s", NO_TABLE)
        return {
            "win_rate": metric(rows, "win_rate", METRICS["win_rate"]),
            "length_controlled_win_rate": Metric(
                value=value,
                stderr=stderr,
                interval=None,
                n=count,
                higher_is_better=METRICS["length_controlled_win_rate"],
            ),
        }

    def breakdowns(self, rows: Sequence[Row]) -> dict[str, Groups]:
        """By where an instruction comes from, and by whether it has an input."""
        return {
            column: grouped(rows, lambda row, key=column: row[key], {"win_rate": METRICS["win_rate"]})
            for column in ("dataset", "input")
        }

    def reported(self, rows: Sequence[Row]) -> dict[str, Any]:
        """Failed judgements, what they leave open, and how long the answers are."""
        known = [row["win_rate"] for row in rows if row["win_rate"] is not None]
        missing = len(rows) - len(known)
        return {
            "without_win_rate": missing,
            "win_rate_if_those_are_lost": sum(known) / len(rows),
            "win_rate_if_those_are_won": (sum(known) + missing) / len(rows),
            "mean_characters": sum(row["characters"] for row in rows) / len(rows),
            "mean_reference_characters": sum(row["reference_characters"] for row in rows) / len(rows),
            **({} if self.settings.scoring.length_control else {"length_controlled_win_rate": NO_TABLE}),
        }

    def _reference(self, record: Record) -> tuple[int, str]:
        whole = whole_instruction(record)
        if whole not in self._references:
            raise RecordError(
                f'The references hold no answer to the instruction of the record "{record.id}", which begins '
                f'"{whole[:60]}". Instructions with an input are looked for as AlpacaEval writes them: instruction, '
                "empty line, input. Take references to the same set."
            )
        return self._references[whole]


def whole_instruction(record: Record) -> str:
    """Instruction and input as one text, exactly as the reference set has it."""
    return f"{record.instruction}\n\n{record.input}" if record.input.strip() else record.instruction


def length_controlled(rows: Sequence[Row], table: Path) -> tuple[float | None, float | None, int]:
    """(rate, its standard error, number of judgements) by the package's regression of preferences on lengths.

    table: the file that the package would take from the Hub. Raises RecordError if it is another one.
    """
    import pandas
    import sklearn
    from alpaca_eval.metrics import glm_winrate

    from bulwark.judges.alpaca_eval import quiet

    known = [row for row in rows if row["win_rate"] is not None]
    if not known:
        return None, None, 0
    wanted = {"model", "index", "preference", "instruction_difficulty", "not_gamed_baseline", "std_delta_len"}
    if missing := wanted - set(pandas.read_csv(table, nrows=1).columns):
        raise RecordError(
            f"{table}: the column {sorted(missing)[0]} is missing. It should be df_gamed.csv of the Hub's data set "
            "tatsu-lab/alpaca_eval."
        )
    # The package measures texts, and only their lengths count; the frame's index is the instruction's number.
    frame = pandas.DataFrame(
        {
            "preference": [1 + row["win_rate"] for row in known],
            "output_1": ["." * row["reference_characters"] for row in known],
            "output_2": ["." * row["characters"] for row in known],
            "generator_1": "reference",
            "generator_2": "model",
        },
        index=[row["reference"] for row in known],
    )
    with quiet(), _at_hand(glm_winrate, table), sklearn.config_context(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of scikit-learn, about arguments that the package passes
        found = glm_winrate.get_length_controlled_winrate(
            frame, save_weights_dir=None, is_add_glm_preference_inplace=False
        )
    return found["length_controlled_winrate"] / 100, found["lc_standard_error"] / 100, len(known)


@contextmanager
def _at_hand(package: Any, table: Path) -> Iterator[None]:
    """Within it, the package gets this file where it would ask the Hub for it."""
    asks_the_hub = package.hf_hub_download
    package.hf_hub_download = lambda **_: str(table)
    try:
        yield
    finally:
        package.hf_hub_download = asks_the_hub
