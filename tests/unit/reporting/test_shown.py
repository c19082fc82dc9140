"""Scores in a terminal, of any checkpoint."""

import io
import json
import os
from pathlib import Path

import pytest
from rich.console import Console
from score_samples import sep_cell, write_scores

from bulwark import seals
from bulwark.cli import main
from bulwark.reporting.results import ResultsError
from bulwark.reporting.shown import measured_at, show


@pytest.fixture
def results(tmp_path, monkeypatch):
    """results/ of an unlisted chain at two seeds, and of the base model; the working folder is beside it."""
    monkeypatch.chdir(tmp_path)
    for seed in (0, 1):
        sep_cell(Path("results"), "m", "vanilla+aside", seed, [0] * 10, [1] * 10)
    none = {"value": None, "stderr": None, "interval": None, "higher_is_better": None}
    write_scores(Path("results"), "m", "base", 0, "other", {"x": none})
    for path in Path("results/scores").rglob("*.*"):
        seals.seal(path, "", {}, "score_answers")
    for recipe in ("vanilla+aside", "base", "heretic"):
        folder = Path("results/checkpoints/m") / recipe / "seed0"
        folder.mkdir(parents=True)
        (folder / "checkpoint.json").write_text("{}")
    return tmp_path


def printed(*paths) -> str:
    console = Console(width=160, record=True, file=io.StringIO())
    show([Path(path) for path in paths], console)
    return console.export_text()


@pytest.mark.parametrize(
    "path",
    [
        "results/scores/m/vanilla+aside/seed0/sep.json",
        "results/scores/m/vanilla+aside/seed0",
        "results/checkpoints/m/vanilla+aside/seed0",
        "results/checkpoints/m/vanilla+aside/seed0/checkpoint.json",
    ],
)
def test_an_unlisted_chain_is_shown_by_its_scores_or_its_checkpoint(results, path):
    text = printed(path)
    for said in ("vanilla+aside", "separation", "1.0000 ± 0", "0.7225 to 1.0000", "higher", "greedy", "0123abc"):
        assert said in text
    assert "seed1" not in text


def test_without_a_path_everything_is_shown(results):
    assert [(cell.recipe, cell.seed) for cell in measured_at(Path("results"))] == [
        ("base", 0), ("vanilla+aside", 0), ("vanilla+aside", 1),
    ]  # fmt: skip
    assert "–" in printed()


def test_what_lies_in_linked_folders_is_shown(results, tmp_path):
    seen = {cell.scores for cell in measured_at(Path("results"))}
    os.rename("results/scores/m/base", tmp_path / "disk")
    os.symlink(tmp_path / "disk", "results/scores/m/base")
    assert {cell.scores for cell in measured_at(Path("results"))} == seen


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("results/scores/m/vanilla+asdie", 'does not exist. Did you mean "vanilla+aside"?'),
        ("results/scores/m/vanilla+asdie/seed0/sep.json", 'Did you mean "vanilla+aside"?'),
        ("results/scores/m/vanilla+aside/seed7/sep.json", "with --configfile before the --"),
        ("results/checkpoints/m/heretic/seed0", "results/scores/m/heretic/seed0/<benchmark>.json"),
        ("results/data/records.json", "is no scores file"),
    ],
)
def test_what_cannot_be_shown_is_said(results, path, said):
    Path("results/data").mkdir(exist_ok=True)
    Path("results/data/records.json").write_text("[]")
    with pytest.raises(ResultsError) as raised:
        measured_at(Path(path))
    assert said in str(raised.value)


def test_the_command(results, capsys):
    assert main(["show", "results/checkpoints/m/vanilla+aside/seed0"]) == 0
    assert "separation" in capsys.readouterr().out
    assert main(["show", "results/nowhere"]) == 1
    assert "results/nowhere does not exist" in capsys.readouterr().err


def test_the_settings_of_a_trial_are_told(results):
    for seed in (0, 1):
        sep_cell(Path("results"), "m", "vanilla+tried.3", seed, [0] * 10, [1] * 10)
    for path in Path("results/scores/m/vanilla+tried.3").rglob("*.*"):
        seals.seal(path, "", {}, "score_answers")
    varied = {"training.learning_rate": 3.1e-05, "data": "x"}
    folder = Path("results/checkpoints/m/vanilla+tried.3/seed0")
    folder.mkdir(parents=True)
    (folder / "checkpoint.json").write_text(json.dumps({"trial": varied}))
    told = 'm/vanilla+tried.3, trial: training.learning_rate 3.1e-05, data "x"'
    assert told in printed(folder)
    assert printed(*["results/scores/m/vanilla+tried.3/seed0"] * 13).count(told) == 1, "of many, once per recipe"
    assert "trial" not in printed("results/scores/m/vanilla+aside/seed0")


def test_of_the_best_of_trials_each_seed_tells_its_own(results):
    for seed, trial in ((0, "aside.3"), (1, "aside.0")):
        sep_cell(Path("results"), "m", "aside.best", seed, [0] * 10, [1] * 10)
        folder = Path(f"results/checkpoints/m/aside.best/seed{seed}")
        folder.mkdir(parents=True)
        chosen = {"trial": trial, "validation_loss": 0.5, "losses": {"aside.0": 1, "aside.3": 1}, "left_out": {}}
        (folder / "checkpoint.json").write_text(json.dumps({"trial": {"x": seed}, "chosen": chosen}))
    for path in Path("results/scores/m/aside.best").rglob("*.*"):
        seals.seal(path, "", {}, "score_answers")
    told = printed("results/scores/m/aside.best")
    assert "m/aside.best/seed0, aside.3, the best of 2 by its validation loss of 0.5" in told
    assert "m/aside.best/seed1, aside.0, the best of 2" in told
