"""Several trainings of one parent in one job: the same bits, one load, and what deaths and failures leave."""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from shared_samples import ADVERSARIES, DIVERGES, PARENT, loads_of, manifest, part, prepare, told, weights
from tiny_causal_models import tiny_model
from tiny_tokenizers import tiny_tokenizer

from bulwark import interrupts, seals, steps
from bulwark.errors import BulwarkError
from bulwark.jobs import launch, together
from bulwark.jobs.loading import _Kept, _whole, loaded_once
from bulwark.jobs.sealing import sealed
from bulwark.jobs.together import Part, Together
from bulwark.models import checkpoints, manifests
from bulwark.models.embeddings import install


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a parent and records; it is the working directory."""
    monkeypatch.chdir(tmp_path)
    prepare()
    return tmp_path


def forked(work) -> int:
    """Do `work` in a child of this process, which is as good as a new one; returns its exit status."""
    _leave_group()
    child = os.fork()
    if child == 0:
        status = 0
        try:
            torch.set_num_threads(1)
            work()
        except BaseException as error:
            sys.excepthook(type(error), error, error.__traceback__)
            status = 1
        os._exit(status)
    return os.waitpid(child, 0)[1]


def _leave_group() -> None:
    """End the process group that a training in this process has formed: its threads would not be in a child."""
    from deepspeed.utils import groups

    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
        groups._WORLD_GROUP = None  # DeepSpeed's copy of it


def alone(one: Part) -> None:
    """What a job of its own does."""
    with sealed(one.sealing):
        steps.execute(one.job)


@pytest.fixture
def processes(monkeypatch):
    """Forks in place of the processes that the launcher starts. The list has the trainings that each was to do.

    What is put into `deaths`, (recipe, optimizer step), kills a process there.
    """
    started: list[list[str]] = []

    def run(line, stop):
        described = Together.read(Path(line[-1]))
        started.append([each.recipe for each in described.parts])

        def work():
            from bulwark.training.loop import _Run

            step, deaths = _Run._optimizer_step, [tuple(death) for death in json.loads(Path("deaths").read_text())]

            def dying(self, number, batches):
                if (self.name.split("/")[1], number) in deaths:
                    os.kill(os.getpid(), signal.SIGKILL)
                step(self, number, batches)

            _Run._optimizer_step = dying
            steps.execute_all(described, Path(line[-1]))

        if status := forked(work):
            raise BulwarkError(f"ended with {status}")

    Path("deaths").write_text("[]")
    monkeypatch.setattr(launch, "run", run)
    return started


def perform(*parts: Part) -> None:
    together.perform(parts, Path("logs/0.json"))


def test_they_are_what_jobs_of_their_own_make_to_the_bit(place):
    parts = [part(recipe) for recipe in ADVERSARIES]
    expected = {}
    for one in parts:
        assert forked(lambda one=one: alone(one)) == 0
        expected[one.recipe] = weights(one.recipe), manifest(one.recipe)
        Path(one.job.output).unlink()
    perform(*parts)
    assert told() == {"made": [*ADVERSARIES], "failed": {}}
    for recipe, (bits, known) in expected.items():
        assert weights(recipe) == bits
        made = manifest(recipe)
        for key in ("asked", "sources", "rule", "path", "settings", "parent", "inputs", "weights", "kind", "recipe"):
            assert made[key] == known[key], key
        files = [{**entry, "modified": 0} for entry in known["files"]]
        assert [{**entry, "modified": 0} for entry in made["files"]] == files
        assert made["training"]["loss"] == known["training"]["loss"]
        assert not Path(made["path"]).with_name("training").exists()
    assert len({bits for bits, _ in expected.values()}) == len(ADVERSARIES)
    assert loads_of("relearn_b") == "The parent's weights were read 1 times, copied 2 times."
    assert sorted(path.name for path in Path("logs").iterdir()) == ["0.json", *sorted(f"{r}.log" for r in ADVERSARIES)]


def test_what_is_finished_when_a_job_is_killed_is_not_trained_again(place, processes, monkeypatch):
    parts = [part(recipe) for recipe in ADVERSARIES]
    assert forked(lambda: [alone(one) for one in parts]) == 0
    expected = {recipe: weights(recipe) for recipe in ADVERSARIES}
    for one in parts:
        Path(one.job.output).unlink()
    Path("deaths").write_text(json.dumps([["relearn_lora", 5]]))
    run = launch.run

    def killed(line, stop):  # and the job with its processes
        with pytest.raises(BulwarkError):
            run(line, stop)
        raise KeyboardInterrupt

    monkeypatch.setattr(launch, "run", killed)
    with pytest.raises(KeyboardInterrupt):
        perform(*parts)
    assert parts[0].is_done()
    assert not parts[1].is_done()
    assert not Path("logs/0.json").exists()
    before = manifest("relearn_a")
    Path("deaths").write_text("[]")
    monkeypatch.setattr(launch, "run", run)
    perform(*parts)
    assert processes == [[*ADVERSARIES], ["relearn_lora", "relearn_b"]]
    assert {recipe: weights(recipe) for recipe in ADVERSARIES} == expected
    assert manifest("relearn_a") == before
    assert manifest("relearn_lora")["training"]["resumed_at"] == [4]


def test_a_signal_between_two_trainings_ends_the_job_there(place, processes):
    """After the look whether the process was told to end, and before the next training listens for signals."""
    parts = [part("relearn_a"), part("relearn_b")]

    def told_to_end():
        def collect():
            os.kill(os.getpid(), signal.SIGTERM)
            return gc.collect()

        steps.gc = SimpleNamespace(collect=collect)  # the last of what is done between two trainings
        try:
            steps.execute_all(Together(tuple(parts)), Path("logs/0.job.json"))
        except interrupts.Interrupted as ended:
            os._exit(ended.code)

    assert os.waitstatus_to_exitcode(forked(told_to_end)) == 128 + signal.SIGTERM
    assert [one.is_done() for one in parts] == [True, False]
    assert Path("logs/0.job.begun").read_text() == "relearn_a"
    perform(*parts)
    assert told() == {"made": ["relearn_a", "relearn_b"], "failed": {}}


def test_one_that_fails_is_named_and_the_others_are_made(place, processes):
    diverges = part("relearn_diverges", **DIVERGES)
    Path("deaths").write_text(json.dumps([["relearn_killed", 1]]))
    perform(part("relearn_a"), diverges, part("relearn_killed"), part("relearn_b"))
    assert told()["made"] == ["relearn_a", "relearn_b"]
    assert [*told()["failed"]] == ["relearn_diverges", "relearn_killed"]
    assert processes[-1] == ["relearn_b"], "it has processes of its own, that nothing has happened to"
    with pytest.raises(BulwarkError, match=r"tiny/relearn_diverges/.*its training failed.* Training stopped at step"):
        together.refuse_failed(Path(diverges.job.output), diverges.sealing.asked, Path("logs/0.json"))
    for recipe in ("relearn_a", "relearn_b"):
        made = part(recipe)
        together.refuse_failed(Path(made.job.output), made.sealing.asked, Path("logs/0.json"))
    with pytest.raises(BulwarkError, match=r"None of the trainings .*\n  relearn_diverges: Training stopped"):
        perform(diverges)


def test_a_trial_that_diverges_is_finished_and_the_others_have_other_processes(place, processes):
    diverges = part("relearn.3", **DIVERGES)
    of_trial = diverges.job.identity | {"trial": {"training.learning_rate": 1e30}}
    diverges = Part(replace(diverges.job, identity=of_trial), diverges.sealing)
    perform(part("relearn_a"), diverges, part("relearn_b"))
    assert told() == {"made": ["relearn_a", "relearn.3", "relearn_b"], "failed": {}}
    assert manifest("relearn.3")["diverged"].startswith("Training stopped at step")
    assert processes == [["relearn_a", "relearn.3", "relearn_b"], ["relearn_b"]]
    perform(part("relearn_a"), diverges, part("relearn_b"))
    assert len(processes) == 2, "nothing is left to do"


def test_an_earlier_checkpoint_does_not_hide_that_its_training_failed(tmp_path, monkeypatch):
    """It may fail before it has touched it: an input is damaged, or another process makes the same."""
    monkeypatch.chdir(tmp_path)
    output, record = Path("results/checkpoints/tiny/relearn_a/seed0/checkpoint.json"), Path("0.json")
    output.parent.mkdir(parents=True)
    output.with_name("config.json").write_text("{}")
    manifests.write_manifest(output, {})
    seals.seal(output, "asked", {}, "apply_step")
    record.write_text(json.dumps({"made": ["relearn_a"], "failed": {}}))
    together.refuse_failed(output, "asked", record)
    record.write_text(json.dumps({"made": [], "failed": {"relearn_a": "its records are damaged"}}))
    with pytest.raises(BulwarkError, match=r"its training failed.* its records are damaged"):
        together.refuse_failed(output, "asked", record)


def test_only_what_is_asked_for_otherwise_is_trained_again(place, processes):
    perform(part("relearn_a"), part("relearn_b"))
    perform(part("relearn_a"), part("relearn_b"))
    before = weights("relearn_a")
    perform(part("relearn_a"), part("relearn_b", max_steps=3))
    assert processes == [["relearn_a", "relearn_b"], ["relearn_b"]]
    assert weights("relearn_a") == before
    assert manifest("relearn_b")["training"]["steps"] == 3


def test_a_parent_that_is_damaged_is_no_training_s_fault(place, processes):
    with Path(PARENT).with_name("model.safetensors").open("ab") as file:
        file.write(b"more")
    with pytest.raises(BulwarkError, match=r"model\.safetensors: it has \d+ bytes, but had"):
        perform(part("relearn_a"))


@pytest.mark.parametrize("tied", [False, True])
def test_a_copy_is_the_model_that_was_read(tied, tmp_path):
    model = tiny_model("llama", tied=tied)
    install(model, {"method": "ise"})
    for name in ("one", "other"):
        checkpoints.save_model(model, tiny_tokenizer("chatml"), tmp_path / name)
    original = checkpoints.load_model
    with loaded_once(tmp_path / "one") as loads:
        first = checkpoints.load_model(tmp_path / "one", dtype="float32")
        read = {name: weight.clone() for name, weight in first.state_dict().items()}
        with torch.no_grad():
            for parameter in first.parameters():
                parameter.add_(1.0).requires_grad_(False)
        first.train()
        second = checkpoints.load_model(tmp_path / "one", dtype="float32")
        assert (loads.read, loads.copied) == (1, 1)
        assert not second.training
        assert all(parameter.requires_grad for parameter in second.parameters())
        assert [*second.state_dict()] == [*read]
        assert all(torch.equal(weight, read[name]) for name, weight in second.state_dict().items())
        # On a CPU the last bit of a sum depends on where the weights lie.
        offsets = [[weight.data_ptr() % 64 for weight in model.parameters()] for model in (first, second)]
        assert offsets[0] == offsets[1]
        assert (second.get_input_embeddings().weight is second.get_output_embeddings().weight) == tied
        assert checkpoints.load_model(tmp_path / "one", dtype="bfloat16").dtype == torch.bfloat16
        assert (loads.read, loads.copied) == (2, 1)
        checkpoints.load_model(tmp_path / "other", dtype="bfloat16")
        assert (loads.read, loads.copied) == (2, 1)
    assert checkpoints.load_model is original


def test_a_copy_lies_on_the_device_on_which_its_original_was_opened():
    """The weights are kept on the CPU; "meta" stands for a device that is not there."""
    model = tiny_model("llama", tied=False)
    kept = _Kept.of(model)
    assert {weight.held.device.type for weight in kept.weights} == {"cpu"}
    assert {parameter.device for parameter in kept.copy().parameters()} == {model.device}
    for weight in kept.weights:
        assert weight.device == model.device
        weight.device = torch.device("meta")
        there = _whole(weight)
        assert (there.device.type, there.shape, there.dtype) == ("meta", weight.held.shape, weight.held.dtype)
    assert {parameter.device.type for parameter in kept.copy().parameters()} == {"meta"}
