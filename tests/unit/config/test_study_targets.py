"""The target study_<name>: what it makes, and which studies have none."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bulwark.config import loading, overlays, plan_reports
from bulwark.errors import ConfigurationError

CONFIG = Path(__file__).parents[3] / "config"


def loaded(*names):
    """The catalogue of config/config.yaml with overlays of config/ laid over it."""
    return loading.load(overlays.read([CONFIG / name for name in names], CONFIG), CONFIG)


@pytest.fixture(scope="module")
def miniature():
    return loaded("miniature.yaml")


def test_a_study_that_shows_nothing_of_its_own_makes_its_numbers(miniature):
    """As `steering_detectors`, whose scores the tables of `steering` show."""
    assert miniature.studies["steering_detectors"].models
    assert not plan_reports.shown(miniature, "steering_detectors")
    made = plan_reports.of_study(miniature, "steering_detectors")
    assert "results/scores/miniature/state_aware/seed2/detectors.json" in made
    assert len(made) == len(miniature.cells("steering_detectors")) + len(miniature.analysis_cells("steering_detectors"))
    assert plan_reports.of_study(miniature, "aside") == plan_reports.shown(miniature, "aside")


@pytest.mark.parametrize(
    ("overlays", "name"), [(["miniature.yaml"], "tar_cyber"), (["miniature.yaml", "demo.yaml"], "cross")]
)
def test_a_study_that_is_left_out_has_no_target_and_the_message_says_where(overlays, name):
    catalogue = loaded(*overlays)
    with pytest.raises(ConfigurationError) as refused:
        plan_reports.refuse_target(catalogue, "study", name)
    assert "leaves the study out" in str(refused.value)
    assert re.search(r"config/\w+\.yaml:\d+", str(refused.value))
