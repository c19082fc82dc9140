"""Task accuracy: exact answers, by kind."""

import json
from pathlib import Path

import pytest
from score_samples import DECODING, tasks_cell, write_lines

from bulwark.benchmarks import benchmark_of, tasks
from bulwark.errors import RecordError

BENCHMARK = benchmark_of("tasks", DECODING)
TASK = {"id": "t0", "instruction": "Count the nouns.", "input": "The cup.", "output": "one", "kind": "count"}


@pytest.mark.parametrize(
    ("response", "right"), [("one", 1), (" one \n", 1), ("one two", 0), ("One", 0), ("", 0), ("on e", 0)]
)
def test_only_white_space_is_forgiven(response, right):
    assert BENCHMARK.score(tasks.Record(**TASK), {"answer": response})["accuracy"] == right


def test_accuracy_over_all_and_by_kind():
    records = [tasks.Record(**{**TASK, "id": str(i), "kind": kind}) for i, kind in enumerate(("a", "a", "b", None))]
    rows = [
        BENCHMARK.score(record, {"answer": said})
        for record, said in zip(records, ("one", "two", "one", "one"), strict=True)
    ]
    assert BENCHMARK.aggregate(rows)["accuracy"]["value"] == 0.75
    by_kind = BENCHMARK.breakdowns(rows)["kind"]
    assert {kind: found["accuracy"]["value"] for kind, found in by_kind.items()} == {"a": 0.5, "b": 1.0, "unnamed": 1.0}


def test_a_task_without_input_has_one_turn():
    with_input = BENCHMARK.prompts(tasks.Record(**TASK))["answer"]
    without = BENCHMARK.prompts(tasks.Record(**{**TASK, "input": ""}))["answer"]
    assert [turn.role for turn in with_input] == ["instruction", "data"]
    assert [turn.role for turn in without] == ["instruction"]


def test_the_scores_file(tmp_path):
    cell = tasks_cell(tmp_path, "miniature", "vanilla", 0, [1, 1, 0, 1])
    content = json.loads(Path(cell["scores"]).read_text())
    assert content["metrics"]["accuracy"]["value"] == 0.75
    assert content["breakdowns"]["kind"]["colour"]["accuracy"]["n"] == 4


def test_a_task_without_output_is_refused(tmp_path):
    path = write_lines(tmp_path / "tasks.jsonl", [{**TASK, "output": ""}])
    with pytest.raises(RecordError, match=r"line 1.*output"):
        BENCHMARK.load(path)


@pytest.mark.parametrize("field", ["instruction", "output"])
def test_an_empty_text_is_refused_with_its_place(tmp_path, field):
    row = {"id": "1", "instruction": "count", "input": "a", "output": "1"} | {field: "  "}
    (tmp_path / "tasks.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(RecordError, match=rf"tasks\.jsonl, line 1.*{field}"):
        BENCHMARK.load(tmp_path / "tasks.jsonl")
