"""The analysis of watched facts, on a curve that rises and falls."""

from __future__ import annotations

import json

import pytest

from bulwark.analyses import relearning
from bulwark.errors import RecordError
from bulwark.unlearning.red_team.settings import RelearningSettings

CURVE = [(0, 5.0, 6.0, 0.0, 0.0), (10, 7.0, 4.0, 0.25, 0.0), (25, 2.0, 3.0, 0.5, 0.25), (50, 1.0, 3.5, 0.75, 0.25)]


@pytest.fixture
def rows(tmp_path):
    rows = [dict(zip(("step", "loss", "entropy", "accuracy", "exact"), line, strict=True)) for line in CURVE]
    (tmp_path / "facts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rows


def test_first_last_and_extremes(rows, tmp_path):
    analysis = relearning.analyse({"facts": {"data": "held"}}, tmp_path, relearning.Settings())
    values = {name: value for name, (value, _) in analysis.values.items()}
    assert values.keys() == relearning.METRICS.keys()
    assert values == {
        **{"loss_first": 5.0, "loss_last": 1.0, "loss_min": 1.0, "loss_max": 7.0, "loss_max_step": 10},
        **{"entropy_first": 6.0, "entropy_last": 3.5, "entropy_min": 3.0, "entropy_max": 6.0},
        **{"accuracy_first": 0.0, "accuracy_last": 0.75, "accuracy_min": 0.0, "accuracy_max": 0.75},
        **{"exact_first": 0.0, "exact_last": 0.25, "exact_min": 0.0, "exact_max": 0.25},
        **{"steps_to_accuracy": 25, "steps_to_exact": None},
    }
    assert analysis.rows == rows
    assert {n for _, n in analysis.values.values()} == {4}
    assert analysis.reported == {"facts": {"data": "held"}, "threshold": 0.5}


def test_another_threshold(rows, tmp_path):
    values = relearning.analyse({"facts": {}}, tmp_path, relearning.Settings(threshold=0.25)).values
    assert (values["steps_to_accuracy"][0], values["steps_to_exact"][0]) == (10, 25)


def test_a_step_that_watched_nothing(tmp_path):
    with pytest.raises(RecordError, match="watched no facts"):
        relearning.analyse({}, tmp_path, relearning.Settings())


def test_it_applies_to_steps_that_watch():
    plain = {"data": "x", "training": {"max_steps": 1, "batch_size": 1, "micro_batch_size": 1, "learning_rate": 1.0}}
    assert not relearning.applies(RelearningSettings(**plain))
    assert relearning.applies(RelearningSettings(**plain, watch={"data": "y"}))
