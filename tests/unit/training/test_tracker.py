"""A tracker gets the numbers that TensorBoard gets, if it is asked for; its absence and its failures are told."""

import logging
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import pytest

from bulwark.config import overlays
from bulwark.errors import ConfigurationError
from bulwark.training.progress import TRACKER, Progress, tracker_named

CONFIG = Path(__file__).parents[3] / "config"


@pytest.fixture
def fake(monkeypatch):
    """A package `trackio` that notes how it is called; failing: the call that raises."""
    module = ModuleType("trackio")
    module.__spec__ = ModuleSpec("trackio", None)
    module.calls, module.failing = [], None

    def noting(name):
        def call(*given, **named):
            if module.failing == name:
                raise RuntimeError("no connection")
            module.calls.append((name, given, named))

        return call

    for name in ("init", "log", "finish"):
        setattr(module, name, noting(name))
    monkeypatch.setitem(sys.modules, "trackio", module)
    monkeypatch.setenv(TRACKER, "trackio")
    return module


def trained(visible=True):
    with Progress("miniature/aside/seed0", 3, 5, visible=visible) as progress:
        for step in (4, 5):
            progress.record(step, {"loss/train": 1.0 / step})
            progress.advance(step, 10)


def test_it_gets_every_number_with_its_step_in_a_run_named_after_the_training(fake):
    trained()
    assert fake.calls == [
        ("init", (), {"project": "bulwark", "name": "miniature/aside/seed0"}),
        ("log", ({"loss/train": 0.25},), {"step": 4}),
        ("log", ({"loss/train": 0.2},), {"step": 5}),
        ("finish", (), {}),
    ]


def test_one_process_of_several_tells_it(fake):
    trained(visible=False)
    assert fake.calls == []


@pytest.mark.parametrize("value", [None, "", "none"])
def test_there_is_none_unless_it_is_asked_for(fake, monkeypatch, value):
    monkeypatch.delenv(TRACKER) if value is None else monkeypatch.setenv(TRACKER, value)
    trained()
    assert fake.calls == []


@pytest.mark.parametrize(("failing", "calls"), [("init", 0), ("log", 1), ("finish", 3)])
def test_its_failure_is_told_once_and_ends_no_training(fake, caplog, failing, calls):
    fake.failing = failing
    with caplog.at_level(logging.WARNING):
        trained()
    assert len(fake.calls) == calls
    [told] = [record.getMessage() for record in caplog.records if "trackio" in record.getMessage()]
    assert told == "The tracker trackio has failed (RuntimeError: no connection); the training goes on."


@pytest.mark.parametrize("visible", [True, False])
def test_a_package_that_is_absent_is_told_on_every_process_before_anything_is_trained(monkeypatch, visible):
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.delitem(sys.modules, "wandb")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setenv(TRACKER, "wandb")
    with pytest.raises(ConfigurationError, match=r"wandb is not installed.*pip install wandb"):
        trained(visible)


def test_the_option_is_checked_before_a_plan(fake, monkeypatch):
    assert overlays.tracker({}) == "none"
    assert overlays.tracker({"tracker": "trackio"}) == "trackio"
    with pytest.raises(ConfigurationError, match=r'"trackoi" is unknown\. Did you mean "trackio"'):
        overlays.read([], CONFIG, {"tracker": "trackoi"})
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match="trackio is not installed"):
        tracker_named("trackio")
