"""The state of an unfinished training: what is written, what is picked up, and what never is."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import random
import resource
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from interrupt_samples import caught
from tiny_causal_models import tiny_model
from torch import nn
from training_samples import PAD, examples, settings, trained

from bulwark.errors import BulwarkError, CheckpointError
from bulwark.files import digest, sha256_of
from bulwark.interrupts import Interrupted
from bulwark.models.embeddings import install
from bulwark.training import loop
from bulwark.training.engine import Processes
from bulwark.training.loop import Trained, train
from bulwark.training.objectives import Objective
from bulwark.training.saved.state import TrainingState
from bulwark.training.settings import WITHOUT_EFFECT, TrainingSettings

ALONE = Processes(0, 0, 1, torch.device("cpu"))


class _Interrupted(Exception):
    pass


class _Ends(Objective):
    """Stops in the middle of optimizer step `at`; counts steps, draws random numbers, and keeps both in its state.

    told: (step, signal): sends itself the signal before that step.
    """

    def __init__(self, at: int | None = None, told: tuple[int, int] | None = None) -> None:
        self.at, self.told, self.count, self.drawn = at, told, 0, []

    def before_step(self, engine, step, total):
        if self.told and step == self.told[0]:
            os.kill(os.getpid(), self.told[1])
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
        ("vanilla", {"optimizer": "sgd", "momentum": 0.9, "nesterov": True, "zero_stage": 3}),
        ("vanilla", {"optimizer": "adadelta", "learning_rate": 1.0, "zero_stage": 3}),
        ("vanilla", {"optimizer": "adadelta", "learning_rate": 1.0, "precision": "bfloat16"}),
        ("vanilla", {"schedule": "cosine_restarts", "cycle_steps": 3, "min_learning_rate": 1e-3}),
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
    assert {"position.json", "process-0.pt", "../best-000003.pt"} < complete["files"].keys()
    assert any(name.startswith("engine/") for name in complete["files"])
    assert json.loads((state / "position.json").read_text())["step"] == 4


def test_adapters_write_no_frozen_weights(tmp_path):
    run(tmp_path / "lora", at=5, lora={"rank": 1})
    saved = torch.load(next((tmp_path / "lora").rglob("*model_states.pt")), weights_only=True)["module"]
    assert saved
    assert all("lora_" in name for name in saved)


@pytest.mark.parametrize("damage", ["removed", "cut", "flipped", "of another step"])
@pytest.mark.parametrize("file", ["complete.json", "position.json", "process-0.pt", "*model_states.pt", "best-*.pt"])
def test_a_damaged_state_is_an_error_that_names_file_and_remedy(file, damage, tmp_path):
    run(tmp_path, at=5, keep_best=True)
    folder = tmp_path / "training"
    path = next(folder.rglob(file))
    whole = path.read_bytes()
    if damage == "removed":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(whole[:-1])
    elif damage == "flipped":
        place = len(whole) // 2
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    else:
        run(tmp_path / "other", at=3, keep_best=True)
        path.write_bytes(next((tmp_path / "other" / "training").rglob(file)).read_bytes())
        if path.read_bytes() == whole:
            pytest.skip("the same in both")
    with pytest.raises(CheckpointError) as error:
        run(tmp_path, keep_best=True)
    assert path.name in str(error.value) or "complete.json" in str(error.value)
    assert "remove" in str(error.value)
    assert "step-000004" in str(error.value)
    shutil.rmtree(folder / "step-000004")
    assert run(tmp_path, keep_best=True)[0].report.resumed_at == []


def test_a_state_from_another_folder_is_not_resumed(tmp_path, caplog):
    run(tmp_path, at=5)
    run(tmp_path / "other", at=5, learning_rate=2e-2)
    shutil.rmtree(tmp_path / "training" / "step-000004")
    shutil.copytree(tmp_path / "other/training/step-000004", tmp_path / "training/step-000004")
    with caplog.at_level(logging.WARNING, logger="bulwark"):
        assert run(tmp_path)[0].report.resumed_at == []
    assert any("step-000004" in line and "put there by hand" in line for line in caplog.messages)


def test_a_pickled_object_is_never_called(tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "called",))

    run(tmp_path, at=5)
    state = tmp_path / "training" / "step-000004"
    torch.save({"random": Evil(), "parts": []}, state / "process-0.pt")
    complete = json.loads((state / "complete.json").read_text())
    complete["files"]["process-0.pt"] = sha256_of(state / "process-0.pt")
    complete["sha256"] = digest({key: value for key, value in complete.items() if key != "sha256"})
    (state / "complete.json").write_text(json.dumps(complete))
    with pytest.raises(CheckpointError, match=r"process-0\.pt: the file cannot be read"):
        run(tmp_path)
    assert not (tmp_path / "called").exists()


def test_what_was_being_written_is_removed(tmp_path):
    run(tmp_path, at=5)
    folder = tmp_path / "training"
    shutil.copytree(folder / "step-000004", folder / "step-000006.tmp")
    (folder / "best-000003.tmp").write_bytes(b"half")
    result, _ = run(tmp_path)
    assert result.report.resumed_at == [4]
    assert not list(folder.glob("*.tmp"))


def test_state_of_other_settings_is_set_aside_and_taken_up_again(tmp_path, caplog):
    whole, _ = run(tmp_path / "whole", save_every=None)
    run(tmp_path, at=5)
    with caplog.at_level(logging.WARNING, logger="bulwark"):
        result, _ = run(tmp_path, at=5, learning_rate=2e-2)
    aside = tmp_path / "training-set-aside"
    assert result is None
    assert any("settings.learning_rate" in line and str(aside / "1") in line for line in caplog.messages)
    assert [path.name for path in aside.glob("*/step-*")] == ["step-000004"]
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="bulwark"):
        result, _ = run(tmp_path)
    assert result.report.resumed_at == [4]
    assert any("taken up again" in line for line in caplog.messages)
    assert [path.name for path in aside.iterdir()] == ["2"]
    same_bits(result.model, whole.model)


@pytest.mark.parametrize("changes", [{"save_every": 3}, {"save_minutes": 5.0}, {"log_every": 1}, {"snapshots": (6,)}])
def test_state_survives_settings_that_cannot_change_a_result(changes, tmp_path):
    whole, _ = run(tmp_path / "whole", save_every=None)
    run(tmp_path, at=5)
    result, _ = run(tmp_path, **changes)
    assert result.report.resumed_at == [4]
    same_bits(result.model, whole.model)


def test_a_snapshot_that_the_state_has_passed_starts_anew(tmp_path):
    run(tmp_path, at=5)
    result, _ = run(tmp_path, snapshots=(2,))
    assert result.report.resumed_at == []
    assert [path.name for path in (tmp_path / "training-set-aside").glob("*/step-*")] == ["step-000004"]


WITH_EFFECT = {
    *("epochs", "max_steps", "batch_size", "micro_batch_size", "optimizer", "learning_rate", "weight_decay", "betas"),
    *("eps", "schedule", "warmup_ratio", "warmup_steps", "max_grad_norm", "loss_on", "max_tokens", "packing"),
    *("group_by_length", "precision", "gradient_checkpointing", "zero_stage", "offload", "lora", "evaluate_every"),
    *("keep_best", "attention", "momentum", "nesterov", "min_learning_rate"),
    *("cycle_steps", "cycle_mul", "cycle_decay"),
}


def test_every_setting_either_decides_a_result_or_is_listed_as_one_that_does_not():
    assert set(TrainingSettings.model_fields) == WITHOUT_EFFECT | WITH_EFFECT
    assert not WITHOUT_EFFECT & WITH_EFFECT
    assert set(settings().deciding()) == WITH_EFFECT


@contextlib.contextmanager
def no_file_larger_than(size: int):
    """A disk that is full, as far as writing goes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("size", [0, 100, 5000, 60_000])
def test_a_full_disk_does_not_end_a_training(size, tmp_path, caplog):
    whole, _ = run(tmp_path / "whole", save_every=None, keep_best=True, snapshots=(3,))
    run(tmp_path, at=3, keep_best=True, snapshots=(3,))
    with no_file_larger_than(size), caplog.at_level(logging.WARNING, logger="bulwark"):
        result, _ = run(tmp_path, keep_best=True, snapshots=(3,))
    assert any("could not be saved" in line and "step-000002 stays" in line for line in caplog.messages)
    assert [path.name for path in (tmp_path / "training").glob("step-*")] == ["step-000002"]
    assert not list((tmp_path / "training").glob("*.tmp"))
    same_bits(result.model, whole.model)
    assert run(tmp_path, keep_best=True, snapshots=(3,))[0].report.resumed_at == [2]


def test_without_room_for_a_second_state_nothing_is_written(tmp_path, caplog, monkeypatch):
    run(tmp_path, at=3)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10))
    with caplog.at_level(logging.WARNING, logger="bulwark"):
        run(tmp_path)
    assert any("are free" in line for line in caplog.messages)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("full", [False, True])
def test_told_to_end_it_saves_after_the_step(number, full, tmp_path, caplog):
    whole, _ = run(tmp_path / "whole", save_every=None)
    disk = no_file_larger_than(5000) if full else contextlib.nullcontext()
    with caught(), disk, pytest.raises(Interrupted) as ended:
        trained(model_of("vanilla"), tmp_path, objective=_Ends(told=(4, number)), max_steps=7, evaluate_every=3)
    assert ended.value.code == 128 + number
    told = "step 5 of 7 could not be saved, nothing was saved before" if full else "saved at step 5 of 7"
    assert any(line.endswith(f"{told}; give the same command again") for line in caplog.messages)
    result, _ = run(tmp_path, save_every=None)
    assert result.report.resumed_at == ([] if full else [5])
    same_bits(result.model, whole.model)


def test_told_to_end_in_its_last_step_it_ends(tmp_path):
    ends = _Ends(told=(6, signal.SIGTERM))
    with caught():
        result = trained(model_of("vanilla"), tmp_path, objective=ends, max_steps=7, evaluate_every=3)
    assert result.report.steps == 7


def test_saving_by_the_clock_takes_its_share_at_most(tmp_path, monkeypatch):
    slow = TrainingState.save
    saved = []

    def save(self, *arguments):
        fine = slow(self, *arguments)
        self.seconds += 5.0
        now[0] += self.seconds
        saved.append(now[0])
        return fine

    now = [0.0]
    monkeypatch.setattr(TrainingState, "save", save)
    monkeypatch.setattr(loop.time, "monotonic", lambda: now.__setitem__(0, now[0] + 0.5) or now[0])
    run(tmp_path, save_every=None, save_minutes=1e-9, max_steps=700)
    assert len(saved) >= 3
    assert all(5.0 * number <= 0.032 * at for number, at in enumerate(saved[1:], start=2))


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


def test_a_fingerprint_that_cannot_be_read_is_written_anew(tmp_path):
    run(tmp_path, at=5)
    record = tmp_path / "training" / "fingerprint.json"
    before = record.read_text()
    record.write_text("{")
    assert run(tmp_path)[0].report.resumed_at == [4]  # complete.json holds its digest
    assert record.read_text() == before


def test_two_cannot_train_into_one_folder(tmp_path):
    first = TrainingState(tmp_path, {}, ALONE)
    with pytest.raises(BulwarkError, match="Another process is training"):
        TrainingState(tmp_path, {}, ALONE)
    first.close()
    TrainingState(tmp_path, {}, ALONE).close()


def test_files_of_others_in_the_folder_are_left(tmp_path):
    (tmp_path / "notes.txt").write_text("keep")
    TrainingState(tmp_path, {"a": 1}, ALONE).close()
    assert (tmp_path / "notes.txt").exists()
