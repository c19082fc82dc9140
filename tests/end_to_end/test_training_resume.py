"""A training that is killed with SIGKILL, at any moment, and started again ends with the same weights, bit for bit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

PROGRAM = Path(__file__).parent / "programs" / "killed_trainings.py"
HELPERS = PROGRAM.parents[2] / "helpers"

STEPS = {"max_steps": 30, "evaluate_every": 7, "save_every": 2}
# Every state takes about nine syncs, so these deaths lie in the first, the second, a later one, and on their borders.
WRITING = [{"sync": 1}, {"sync": 3}, {"sync": 5}, {"rename": 2}, {"sync": 19}, {"rename": 3}, {"sync": 30}]
KINDS = {
    "plain": ("vanilla", {}, [{"step": 0}, {"step": 3}, *WRITING, {"step": 29}]),
    "own_parameters": ("ise", {"schedule": "linear", "warmup_ratio": 0.4}, [{"sync": 4}, {"step": 7}, {"sync": 16}]),
    "adapters": ("ise", {"lora": {"rank": 2, "dropout": 0.3}}, [{"step": 5}, {"sync": 9}, {"rename": 2}]),
    "best": (
        "aside",
        {"keep_best": True, "learning_rate": 0.2, "evaluate_every": 1},
        [{"sync": 2}, {"sync": 9}, {"step": 9}, {"sync": 25}],
    ),
    "packed": ("aside", {"packing": True, "max_tokens": 30}, [{"step": 4}, {"sync": 14}]),
    "accumulating": ("vanilla", {"micro_batch_size": 1, "gradient_checkpointing": True}, [{"step": 9}]),
    "sharded": ("ise", {"zero_stage": 3}, [{"step": 6}, {"sync": 12}]),
    "by_chance": ("vanilla", {"save_every": 1, "max_steps": 40}, [{"seconds": 0.4 + 0.37 * n} for n in range(4)]),
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All trainings, each once with deaths and once whole and without saving anything on the way."""
    folder = tmp_path_factory.mktemp("killed")
    plan = []
    for name, (method, changes, deaths) in KINDS.items():
        chosen = STEPS | changes
        plan.append({"name": name, "method": method, "settings": chosen, "deaths": deaths})
        whole = chosen | {"save_every": None}
        plan.append({"name": f"{name}_whole", "method": method, "settings": whole, "deaths": []})
    (folder / "plan.json").write_text(json.dumps(plan))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HELPERS), *sys.path]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(PROGRAM), str(folder / "plan.json")],
        env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:]
    return folder


@pytest.mark.parametrize("name", KINDS)
def test_the_weights_are_those_of_an_uninterrupted_run(name, folder):
    whole, parts = (torch.load(folder / run / "weights.pt", weights_only=True) for run in (f"{name}_whole", name))
    assert whole.keys() == parts.keys()
    assert [key for key in whole if not torch.equal(whole[key], parts[key])] == []


@pytest.mark.parametrize("name", KINDS)
def test_the_report_tells_the_same_training(name, folder):
    whole, parts = (json.loads((folder / run / "report.json").read_text()) for run in (f"{name}_whole", name))
    for told in ("steps", "loss", "validation", "tokens", "target_tokens", "best_step", "weights_of_step"):
        assert whole[told] == parts[told]
    assert whole["resumed_at"] == []


def test_deaths_did_interrupt(folder):
    def resumed(name: str) -> list[int]:
        return json.loads((folder / name / "report.json").read_text())["resumed_at"]

    assert all(resumed(name) for name in KINDS if name != "by_chance")
    assert resumed("plain") == sorted(resumed("plain"))


def test_the_best_weights_are_not_the_last(folder):
    report = json.loads((folder / "best" / "report.json").read_text())
    assert report["weights_of_step"] == report["best_step"] < report["steps"]


def test_only_whole_states_are_left(folder):
    left = [path for path in folder.rglob("step-*") if path.is_dir()]
    assert left
    assert all((path / "complete.json").exists() for path in left)
    assert not list(folder.rglob("*.tmp"))
