"""The analysis of simulated attacks, on four trajectories with numbers that can be added up by hand."""

from __future__ import annotations

import json
import math

import pytest

from bulwark.analyses import applies, tampering
from bulwark.errors import RecordError
from bulwark.unlearning.tampering.settings import TamperingSettings

# (outer step, switch, adversary's loss, resistance loss, held-out cross-entropy)
TRAJECTORIES = [
    (0, 0, [4.0, 2.0, 1.0], [-3.0, -2.0], 0.5),
    (1, 2, [0.1, 0.2, 9.0], [-4.0, -2.5], 0.75),
    (2, 0, [4.0, 5.0, 6.0], [-5.0, -4.0], 5.0),
    (3, 0, [5.0, 6.0, 8.0], [-5.0, -4.5], 6.0),
]
ENTROPY = {"settings": {"resistance": {"loss": "entropy"}}, "tampering": {"lambda_effective": 4.0}}


def written(folder, trajectories=TRAJECTORIES, **more):
    lines = [
        {"step": step, "switch": switch, "attack": attack, "resistance": resistance, "held_out_cross_entropy": left}
        for step, switch, attack, resistance, left in trajectories
    ]
    (folder / "tampering.jsonl").write_text("".join(json.dumps(line | more) + "\n" for line in lines))
    (folder / "config.json").write_text(json.dumps({"vocab_size": 148}))
    return folder


def values(analysis):
    return {name: value for name, (value, _) in analysis.values.items()}


def test_first_and_last(tmp_path):
    analysis = tampering.analyse(ENTROPY, written(tmp_path), tampering.Settings(share=0.5))
    assert values(analysis) == {
        **{"resistance_first": (-2.5 - 3.25) / 2, "resistance_last": (-4.5 - 4.75) / 2},
        **{"entropy_first": 2.25, "entropy_last": 4.25},
        "entropy_share_last": pytest.approx(4.25 / math.log(148)),
        # The second attack begins on other data, so that its own loss says nothing.
        **{"attack_first": 1.0, "attack_last": 7.0, "attack_rise_first": -3.0, "attack_rise_last": 2.5},
        **{"held_out_first": 0.625, "held_out_last": 5.5, "win_rate_first": None, "win_rate_last": None},
    }
    assert analysis.values.keys() == tampering.METRICS.keys()
    assert {name: n for name, (_, n) in analysis.values.items() if name.endswith("_first")} == {
        "resistance_first": 2, "entropy_first": 2, "attack_first": 1, "attack_rise_first": 1, "held_out_first": 2,
        "win_rate_first": 0,
    }  # fmt: skip
    assert analysis.reported == {"share": 0.5, "trajectories": 4, "lambda_effective": 4.0}


def test_a_tenth_is_one_trajectory_at_least(tmp_path):
    found = values(tampering.analyse(ENTROPY, written(tmp_path), tampering.Settings()))
    assert (found["resistance_first"], found["resistance_last"]) == (-2.5, -4.75)


def test_curves_over_outer_and_inner_steps(tmp_path):
    rows = tampering.analyse(ENTROPY, written(tmp_path), tampering.Settings(share=0.5)).rows
    outer = [row for row in rows if row["curve"] == "outer"]
    assert [(row["step"], row["resistance"], row["attack"]) for row in outer] == [
        (0, -2.5, 1.0), (1, -3.25, None), (2, -4.5, 6.0), (3, -4.75, 8.0),
    ]  # fmt: skip
    inner = {when: [row["attack"] for row in rows if row["when"] == when] for when in ("first", "last")}
    assert inner == {"first": [4.0, 2.0, 1.0], "last": [4.5, 5.5, 7.0]}
    assert {tuple(row) for row in rows} == {tuple(rows[0])}, "all rows have the same columns"


def test_several_attacks_of_an_outer_step_are_averaged(tmp_path):
    twice = [(0, *TRAJECTORIES[0][1:]), (0, *TRAJECTORIES[2][1:])]
    rows = tampering.analyse(ENTROPY, written(tmp_path, twice), tampering.Settings()).rows
    assert [(row["step"], row["held_out"]) for row in rows if row["curve"] == "outer"] == [(0, 2.75)]


def test_preferences_have_a_win_rate_and_no_entropy(tmp_path):
    dpo = {"settings": {"resistance": {"loss": "dpo"}}}
    found = values(tampering.analyse(dpo, written(tmp_path, win_rate=0.75), tampering.Settings()))
    assert (found["win_rate_last"], found["entropy_last"], found["entropy_share_last"]) == (0.75, None, None)


def test_where_every_attack_begins_on_other_data_all_count(tmp_path):
    switched = [(step, 2, *rest) for step, _, *rest in TRAJECTORIES]
    assert values(tampering.analyse(ENTROPY, written(tmp_path, switched), tampering.Settings()))["attack_last"] == 8.0


def test_a_step_without_attacks(tmp_path):
    with pytest.raises(RecordError, match="simulated no attacks"):
        tampering.analyse(ENTROPY, tmp_path, tampering.Settings())
    assert not applies("tampering", None)
    assert tampering.applies(TamperingSettings.model_construct())
