"""The state of an unfinished training: what is written, what is picked up, and what never is."""

from __future__ import annotations

import json
import logging
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_causal_models import tiny_model
from torch import nn
from training_samples import PAD, examples, settings, trained

from bulwark.errors import BulwarkError
from bulwark.models.embeddings import install
from bulwark.training.engine import Processes
from bulwark.training.loop import Trained, train
from bulwark.training.objectives import Objective
from bulwark.training.state import TrainingState

ALONE = Processes(0, 0, 1, torch.device("cpu"))


class _Interrupted(Exception):
    pass


class _Ends(Objective):
    """Stops in the middle of optimizer step `at`; counts steps, draws random numbers, and keeps both in its state."""

    def __init__(self, at: int | None = None) -> None:
        self.at, self.count, self.drawn = at, 0, []

    def before_step(self, engine, step, total):
        self.count += 1
        self.drawn.append((random.random(), float(np.random.random()), float(torch.rand(()))))

    def after_backward(self, engine, step, total):
        if step == self.at:
            raise _Interrupted

    def state_dict(self):
        return {"count": self.count, "drawn": list(self.drawn)}

    def load_state_dict(self, state):
        self.count, self.drawn = state["count"], state["drawn"]


def model_of(method: str) -> nn.Module:
    model = tiny_model("llama")
    torch.manual_seed(1)
    install(model, {"method": method})
    return model


def run(folder: Path, at: int | None = None, method: str = "vanilla", **changes) -> tuple[Trained | None, _Ends]:
    objective = _Ends(at)
    chosen = {"max_steps": 7, "save_every": 2, "evaluate_every": 3} | changes
    try:
        return trained(model_of(method), folder, objective=objective, **chosen), objective
    except _Interrupted:
        return None, objective


def same_bits(one: nn.Module, other: nn.Module) -> None:
    ours, theirs = one.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("vanilla", {}),
        ("ise", {"schedule": "linear", "warmup_ratio": 0.3, "weight_decay": 0.1}),
        ("aside", {"packing": True, "max_tokens": 30}),
        ("ise", {"lora": {"rank": 2, "dropout": 0.2}}),
        ("vanilla", {"lora": {"rank": 2}, "zero_stage": 3}),
        ("vanilla", {"zero_stage": 2}),
        ("ise", {"zero_stage": 3}),
        ("vanilla", {"precision": "bfloat16", "zero_stage": 3}),
        ("vanilla", {"precision": "bfloat16"}),
        ("vanilla", {"optimizer": "schedulefree_adamw", "schedule": "constant"}),
        ("vanilla", {"keep_best": True, "learning_rate": 1.0, "schedule": "constant"}),
    ],
    ids=str,
)
def test_interrupted_twice_it_ends_with_the_same_bits(method, changes, tmp_path):
    whole, counted = run(tmp_path / "whole", method=method, save_every=None, **changes)
    for at in (5, 6):
        assert run(tmp_path / "parts", at, method=method, **changes)[0] is None
    result, recounted = run(tmp_path / "parts", method=method, **changes)
    assert result.report.resumed_at == [4, 6]
    same_bits(result.model, whole.model)
    assert (recounted.count, recounted.drawn) == (counted.count, counted.drawn) == (7, counted.drawn)
    for told in ("loss", "validation", "tokens", "target_tokens", "best_step", "weights_of_step"):
        assert getattr(result.report, told) == getattr(whole.report, told)


def test_saving_by_the_clock_has_no_effect_on_the_result(tmp_path):
    whole, _ = run(tmp_path / "whole", save_every=None)
    often, _ = run(tmp_path / "often", save_every=None, save_minutes=1e-9)
    assert list((tmp_path / "often" / "training").glob("step-*"))
    same_bits(whole.model, often.model)


def test_only_the_newest_state_stays_with_all_that_resuming_needs(tmp_path):
    run(tmp_path, at=5, keep_best=True)
    folder = tmp_path / "training"
    assert sorted(path.name for path in folder.glob("step-*")) == ["step-000004"]
    state = folder / "step-000004"
    complete = json.loads((state / "complete.json").read_text())
    assert {"position.json", "process-0.pt"} < complete.keys()
    assert any(name.startswith("engine/") for name in complete)
    assert json.loads((state / "position.json").read_text())["step"] == 4


def test_adapters_write_no_frozen_weights(tmp_path):
    run(tmp_path / "lora", at=5, lora={"rank": 1})
    saved = torch.load(next((tmp_path / "lora").rglob("*model_states.pt")), weights_only=False)["module"]
    assert saved
    assert all("lora_" in name for name in saved)


@pytest.mark.parametrize("damage", ["marker", "file", "size"])
def test_a_state_that_is_not_whole_is_not_picked_up(damage, tmp_path):
    whole, _ = run(tmp_path / "whole", save_every=None)
    run(tmp_path / "parts", at=5)
    state = tmp_path / "parts" / "training" / "step-000004"
    if damage == "marker":
        (state / "complete.json").unlink()
    elif damage == "file":
        (state / "process-0.pt").unlink()
    else:
        weights = next(state.rglob("*model_states.pt"))
        weights.write_bytes(weights.read_bytes()[:-1])
    result, _ = run(tmp_path / "parts")
    assert result.report.resumed_at == []
    same_bits(result.model, whole.model)


def test_what_was_being_written_is_removed(tmp_path):
    run(tmp_path, at=5)
    folder = tmp_path / "training"
    shutil.copytree(folder / "step-000004", folder / "step-000006.tmp")
    (folder / "best-000003.tmp").write_bytes(b"half")
    result, _ = run(tmp_path)
    assert result.report.resumed_at == [4]
    assert not list(folder.glob("*.tmp"))


@pytest.mark.parametrize(
    ("changes", "told"),
    [({"learning_rate": 2e-2}, "settings.learning_rate"), ({"save_every": 3}, "settings.save_every")],
)
def test_state_of_other_settings_is_deleted_and_said_so(changes, told, tmp_path, caplog):
    run(tmp_path, at=5)
    with caplog.at_level(logging.WARNING, logger="bulwark"):
        result, _ = run(tmp_path, **changes)
    assert result.report.resumed_at == []
    assert any(told in line and "step-000004" in line for line in caplog.messages)
    same_bits(result.model, run(tmp_path / "fresh", **changes)[0].model)


def test_state_of_other_examples_digests_or_seed_is_not_resumed(tmp_path):
    def resumed(count: int = 14, seed: int = 0, caller: str = "a") -> list[int]:
        folder = tmp_path / f"{count}{seed}{caller}"
        shutil.copytree(tmp_path / "training", folder)
        return train(
            model_of("vanilla"), examples(count), examples(6, seed=1), chosen, seed=seed, state=folder,
            fingerprint={"parent": caller}, pad_id=PAD, objective=_Ends(),
        ).report.resumed_at  # fmt: skip

    chosen = settings(max_steps=7, save_every=2, evaluate_every=3)
    with pytest.raises(_Interrupted):
        train(
            model_of("vanilla"), examples(14), examples(6, seed=1), chosen, seed=0, state=tmp_path / "training",
            fingerprint={"parent": "a"}, pad_id=PAD, objective=_Ends(5),
        )  # fmt: skip
    assert resumed() == [4]
    assert resumed(count=15) == resumed(seed=1) == resumed(caller="b") == []


def test_a_fingerprint_that_cannot_be_read_is_another_one(tmp_path):
    run(tmp_path, at=5)
    (tmp_path / "training" / "fingerprint.json").write_text("{")
    assert run(tmp_path)[0].report.resumed_at == []


def test_two_cannot_train_into_one_folder(tmp_path):
    first = TrainingState(tmp_path, {}, ALONE)
    with pytest.raises(BulwarkError, match="Another process is training"):
        TrainingState(tmp_path, {}, ALONE)
    first.close()
    TrainingState(tmp_path, {}, ALONE).close()


def test_files_of_others_in_the_folder_are_left(tmp_path):
    (tmp_path / "notes.txt").write_text("keep")
    (tmp_path / "step-000009").mkdir()
    TrainingState(tmp_path, {"a": 1}, ALONE).close()
    assert (tmp_path / "notes.txt").exists()
    assert not (tmp_path / "step-000009").exists()
