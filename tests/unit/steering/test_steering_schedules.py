"""Strength over a training, and the detected onset (Guan et al., arXiv 2609.10142, eq. 3 and 4 and App. E)."""

from __future__ import annotations

import random

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError

from bulwark.errors import BulwarkError, ConfigurationError
from bulwark.steering.schedules import DetectedOnset, ScheduleSettings, detect_onset


def test_7_a_rise_is_alpha_at_the_onset_and_the_double_at_the_end():
    schedule = ScheduleSettings(shape="rise", onset=50).over(155, 20.0)
    assert [schedule.alpha_at(step) for step in (0, 49)] == [20.0, 20.0]
    assert schedule.alpha_at(50) == pytest.approx(20.0 * (1 + 1 / 105))
    assert schedule.alpha_at(154) == 40.0
    rises = [schedule.alpha_at(step + 1) - schedule.alpha_at(step) for step in range(49, 154)]
    assert rises == pytest.approx([20.0 / 105] * 105)


def test_7_a_decline_is_alpha_at_the_onset_and_nought_at_the_end():
    schedule = ScheduleSettings(shape="decline", onset=3).over(10, 4.0)
    assert [schedule.alpha_at(step) for step in range(4)] == pytest.approx([4.0, 4.0, 4.0, 4.0 * 6 / 7])
    assert schedule.alpha_at(9) == 0.0


def test_7_the_horizon_is_the_whole_training_not_an_epoch():
    one, three = (ScheduleSettings(shape="rise", onset=0).over(steps, 1.0) for steps in (10, 30))
    assert one.alpha_at(9) == three.alpha_at(29) == 2.0
    assert three.alpha_at(9) == pytest.approx(1 + 10 / 30)
    assert all(three.alpha_at(step) < three.alpha_at(step + 1) for step in range(29))


def test_a_horizon_of_its_own_is_where_the_end_is_reached():
    schedule = ScheduleSettings(shape="rise", onset=2, horizon=6, multiplier=3.0).over(20, 1.0)
    assert schedule.alpha_at(5) == schedule.alpha_at(19) == 3.0


def test_the_mean_of_the_papers_rise_is_what_a_static_control_needs():
    """About 620 micro-batches, so 155 steps, onset 200 of them: 26.8."""
    assert ScheduleSettings(shape="rise", onset=50).over(155, 20.0).mean_alpha() == pytest.approx(26.8, abs=0.05)
    assert ScheduleSettings().over(155, 20.0).mean_alpha() == 20.0


def test_withdrawal_steers_exactly_so_many_steps():
    schedule = ScheduleSettings(withdraw_at=3).over(8, 5.0)
    assert [schedule.is_on(step) for step in range(8)] == [True] * 3 + [False] * 5
    assert [schedule.alpha_at(step) for step in range(4)] == [5.0, 5.0, 5.0, 0.0]


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"shape": "rise", "withdraw_at": 5}, "withdraw_at is for a constant strength"),
        ({"multiplier": 2.0}, "a constant strength has no multiplier"),
        ({"onset": 3, "horizon": 9}, "no onset, horizon"),
        ({"shape": "decline", "multiplier": 3.0}, "a decline goes to 0"),
        ({"shape": "rise", "onset": 9, "horizon": 9}, "must come before the horizon"),
        ({"shape": "rise", "onset": -1}, "from 0"),
        ({"shape": "rise", "multiplier": 1.0}, "greater than 1"),
        ({"shape": "rise", "onset": {"detected_from": "steer", "share": 1.5}}, "less than or equal to 1"),
    ],
)
def test_contradictions_are_refused(settings, complaint):
    with pytest.raises(ValidationError, match=complaint):
        ScheduleSettings.model_validate(settings)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [({"shape": "rise", "onset": 20}, "the onset 20 lies behind"), ({"withdraw_at": 20}, "withdraw_at 20, but")],
)
def test_what_lies_behind_the_end_of_the_training_is_refused(settings, complaint):
    with pytest.raises(ConfigurationError, match=complaint):
        ScheduleSettings(**settings).over(20, 1.0)


def test_a_detected_onset_is_found_in_the_sibling_recipe_and_scaled():
    settings = ScheduleSettings(shape="rise", onset=DetectedOnset(detected_from="steer", share=0.5))
    [path] = settings.inputs().values()
    place = {"model": "m", "parent": "ise", "seed": 3}
    assert path.format(prefix="ise+", **place) == "checkpoints/m/ise+steer/seed3/checkpoint.json"
    assert path.format(prefix="", **place) == "checkpoints/m/steer/seed3/checkpoint.json"
    assert settings.over(100, 1.0, detected=41).onset == 20
    with pytest.raises(BulwarkError, match="detect it first"):
        settings.over(100, 1.0)
    assert ScheduleSettings(shape="rise", onset=4).inputs() == {}


@pytest.mark.parametrize("knee", [30, 60, 120])
def test_13_the_knee_of_a_decay_is_found(knee):
    draw = random.Random(0)
    series = [-0.1 - 0.4 * max(0.0, 1 - step / knee) + draw.gauss(0, 0.01) for step in range(200)]
    onset = detect_onset(series)
    assert onset.found
    assert abs(onset.step - knee) <= 10
    assert onset.band[0] < -0.1 < onset.band[1]


def settled(series: list[float], window: int = 10, share: float = 0.2, width: float = 2.5, staying: float = 0.9) -> int:
    """Appendix E once more, with pandas and numpy; the middle where nothing settles."""
    length, values = max(10, round(share * len(series))), pd.Series(series)
    low, high = (values[-length:].mean() + sign * width * values[-length:].std(ddof=0) for sign in (-1, 1))
    inside = values.rolling(window, center=True, min_periods=1).mean().between(low, high).to_numpy()
    later = np.array([inside[step + 1 :].mean() for step in range(len(series) - length)])
    return next(iter(np.flatnonzero(inside[:-length] & (later >= staying)).tolist()), len(series) // 2)


def wandering(seed: int) -> list[float]:
    """A decay that is noisy, above all before its knee, with outliers behind it, and now and then a spell elsewhere."""
    draw, knee = random.Random(seed), 40 + 10 * (seed % 7)
    shift = [0.4 * max(0.0, 1 - step / knee) + (0.05 if draw.random() < 0.15 else 0.0) for step in range(200)]
    if seed % 3 == 0:
        shift[110:140] = [0.1] * 30
    return [draw.gauss(0, 0.03 if step < knee else 0.012) - 0.1 - shift[step] for step in range(200)]


def test_13_the_onset_is_that_of_a_second_computation():
    every = [wandering(seed) for seed in range(40)]
    assert [detect_onset(series).step for series in every] == [settled(series) for series in every]


@pytest.mark.parametrize("other", [{"window": 1}, {"share": 0.5}, {"width": 5.0}, {"staying": 0.5}])
def test_13_each_number_of_the_detection_makes_a_difference(other):
    every = [wandering(seed) for seed in range(40)]
    assert [settled(series, **other) for series in every] != [settled(series) for series in every]


def test_13_a_constant_series_is_settled_from_the_start():
    assert detect_onset([0.1] * 60).step == 0
    assert detect_onset([0.1] * 60).found


def test_13_without_a_knee_it_is_the_middle():
    draw = random.Random(1)
    restless = [draw.gauss(0, 1.0) if step < 160 else draw.gauss(0, 0.01) for step in range(200)]
    assert (detect_onset(restless).step, detect_onset(restless).found) == (100, False)


def test_steps_without_a_gradient_are_left_out():
    series: list[float | None] = [0.5 if step < 40 else 0.1 for step in range(120)]
    series[60] = series[118] = None
    assert abs(detect_onset(series).step - 40) <= 5
    with pytest.raises(BulwarkError, match="no values at its end"):
        detect_onset([0.1] * 30 + [None] * 12)
    with pytest.raises(BulwarkError, match="empty"):
        detect_onset([])
