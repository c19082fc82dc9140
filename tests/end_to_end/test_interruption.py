"""Ctrl-C and SIGTERM in real runs: what is done is saved and said, and the same command ends as if nothing had been."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.conftest import SMALLEST, Checkout, copy_of_the_tree

LONG = """
name: interrupted
models:
  miniature:
    source:
      miniature:
        pretraining: {records: 2400, epochs: 2}
datasets:
  miniature_tasks: {splits: {test: 400}}
steps:
  aside: {models: {miniature: {settings: {training: {batch_size: 4, micro_batch_size: 4, epochs: 6, snapshots: [50]}}}}}
"""
MODEL = "results/models/miniature/model.json"
ASIDE = "results/checkpoints/miniature/aside/seed0/checkpoint.json"
SNAPSHOT = "results/checkpoints/miniature/aside@50/seed0/checkpoint.json"
ANSWERS = "results/scores/miniature/aside@50/seed0/tasks.json"


class Run:
    """Snakemake in a session of its own, as a shell starts it."""

    def __init__(self, checkout: Checkout, *targets: str) -> None:
        folder = checkout.folder
        (folder / "long.yaml").write_text(LONG)
        line = [sys.executable, "-m", "snakemake", "-c2", "--configfile", SMALLEST, "long.yaml", "--quiet", "rules"]
        self.process = subprocess.Popen(
            [*line, "--", *targets], cwd=folder, env=checkout.environment, text=True, start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def wait_until(self, true: Callable[[], bool]) -> None:
        end = time.monotonic() + 300
        while not true():
            assert self.process.poll() is None, self.process.stdout.read()
            assert time.monotonic() < end
            time.sleep(0.05)

    def told(self, number: int, *, group: bool) -> str:
        """What is printed from the signal on, to the end."""
        (os.killpg if group else os.kill)(self.process.pid, number)
        text, _ = self.process.communicate(timeout=120)
        assert self.process.returncode == 1
        return text


def done(checkout: Checkout, *targets: str) -> str:
    run = Run(checkout, *targets)
    text, _ = run.process.communicate(timeout=600)
    assert run.process.returncode == 0, text[-4000:]
    return text


def quiet(text: str) -> None:
    """A person is told how it goes on, and is spared what Python and Snakemake say of the end."""
    assert "give the same command again" in text
    for word in ("Traceback", "Error", "CalledProcessError", "pickle"):
        assert word not in text, text


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    checkout = copy_of_the_tree(tmp_path_factory.mktemp("whole") / "bulwark")
    done(checkout, ASIDE, ANSWERS)
    return checkout


@pytest.mark.slow
def test_interrupted_three_times_the_results_are_those_of_one_run(whole, tmp_path):
    checkout = copy_of_the_tree(tmp_path / "bulwark")
    results = checkout.folder / "results"

    run = Run(checkout, ASIDE, ANSWERS)  # Ctrl-C in the pre-training, which runs in a fresh process
    run.wait_until(lambda: any(results.glob("models/miniature/tensorboard/*")))
    time.sleep(1)
    text = run.told(signal.SIGINT, group=True)
    assert "saved at step " in text
    quiet(text)
    assert not list(checkout.folder.glob(".snakemake/told-to-end-*"))

    run = Run(checkout, ASIDE, ANSWERS)  # SIGTERM to Snakemake alone, in a training in the warm parent's child
    run.wait_until(lambda: any(results.glob("checkpoints/miniature/aside/seed0/tensorboard/*")))
    time.sleep(1)
    text = run.told(signal.SIGTERM, group=False)
    assert "miniature/aside/seed0: saved at step " in text
    assert "no others start" in text
    quiet(text)

    run = Run(checkout, ASIDE, ANSWERS)  # Ctrl-C while answers are generated
    run.wait_until(lambda: any(results.glob("answers/miniature/aside@50/seed0/*.partial")))
    text = run.told(signal.SIGINT, group=True)
    assert " of 400 answers are kept in results/answers/miniature/aside@50/seed0/tasks.jsonl.partial" in text
    assert "starts again" not in text
    quiet(text)

    done(checkout, ASIDE, ANSWERS)
    for path in (MODEL, ASIDE, "results/checkpoints/miniature/aside/seed0/snapshots/50/checkpoint.json"):
        name = str(Path(path).with_name("model.safetensors"))
        expected, found = (load_file(each.folder / name) for each in (whole, checkout))
        assert expected.keys() == found.keys()
        assert [key for key, weight in expected.items() if not weight.equal(found[key])] == []
    answers = ANSWERS.replace("scores", "answers", 1).replace(".json", ".jsonl")
    assert (whole.folder / answers).read_bytes() == (checkout.folder / answers).read_bytes()
