"""The analyser writes the same numbers with two processes as with one, at every ZeRO stage."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

FILE = "analysis.jsonl"
STAGES = (0, 1, 2, 3)


PROGRAM = "analysis_ranks"
PLANS = {1: STAGES, 2: STAGES}


@pytest.fixture(scope="module")
def folder(launched: Path) -> Path:
    return launched / PROGRAM


@pytest.mark.parametrize("stage", STAGES)
def test_the_numbers_are_those_of_one_process(folder, stage):
    one, two = (
        {
            (row["step"], row["layer"], row["module"], row["quantity"]): row["value"]
            for row in map(json.loads, (folder / f"stage{stage}_{ranks}" / FILE).read_text().splitlines())
        }
        for ranks in (1, 2)
    )
    assert len(one) > 200
    assert {step for step, *_ in one} == set(range(5))
    # The one example of step 3 has one token, which predicts nothing: its gradient is 0 and has no direction.
    undefined = {place for place, value in one.items() if value is None}
    assert {step for step, *_ in undefined} == {3}
    assert {place for place, value in two.items() if value is None} == undefined
    for place in one.keys() - undefined:
        assert two[place] == pytest.approx(one[place], rel=1e-4, abs=1e-6), place
