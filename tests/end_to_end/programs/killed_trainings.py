"""A program that trains tiny models in processes of their own and kills them with SIGKILL: `python … plan.json`.

The plan is a list of trainings {"name", "method", "settings", "deaths"}. A training is started again after each of its
deaths, each of which is one of

    {"seconds": s}    that long after the training began
    {"step": n}       in the middle of optimizer step n, between the gradients and the update
    {"sync": n}       at the n-th time that it waits for a file to be on the disk, that is, while writing its state
    {"rename": n}     just before the n-th renaming: all is written, but not yet under its name

and a last time, in which it ends. Its weights and its report go beside the plan. One import serves all, since the
children are forked.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tiny_causal_models import tiny_model
from training_samples import trained

import bulwark.training.saved.state as state
from bulwark.models.embeddings import install
from bulwark.training.objectives import Objective


def main(plan: Path) -> None:
    gc.freeze()  # each child collects garbage, and need not look through all that is imported
    for training in json.loads(plan.read_text()):
        folder = plan.parent / training["name"]
        for death in training["deaths"]:
            if not _in_a_child(partial(_train, training, folder, death), death) and "seconds" not in death:
                sys.exit(f"{training['name']} outlived {death}")
        if _in_a_child(partial(_train, training, folder, {}), {}):
            sys.exit(f"{training['name']} did not end")


def _in_a_child(work: Callable[[], None], death: dict[str, Any]) -> bool:
    """Do `work` in a forked process; return whether it was killed. An error in it ends this program."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(1)
        os._exit(0)
    if "seconds" in death:
        time.sleep(death["seconds"])
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return os.WTERMSIG(status) == signal.SIGKILL
    if os.WEXITSTATUS(status):
        sys.exit(os.WEXITSTATUS(status))
    return False


def _train(training: dict[str, Any], folder: Path, death: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    if "sync" in death:
        state._sync = _dying(state._sync, death["sync"])
    if "rename" in death:
        os.replace = _dying(os.replace, death["rename"])
    model = tiny_model(training.get("family", "llama"))
    torch.manual_seed(1)
    install(model, {"method": training["method"]})
    result = trained(model, folder, objective=_Dying(death.get("step")), **training["settings"])
    torch.save(result.model.state_dict(), folder / "weights.pt")
    (folder / "report.json").write_text(json.dumps(vars(result.report)))


class _Dying(Objective):
    def __init__(self, at: int | None) -> None:
        self.at = at

    def after_backward(self, engine, step: int, total: int) -> None:
        if step == self.at:
            _die()


def _dying(function: Callable, at: int) -> Callable:
    """`function`, but its `at`-th call kills the process instead."""
    calls = 0

    def counted(*arguments):
        nonlocal calls
        calls += 1
        if calls == at:
            _die()
        return function(*arguments)

    return counted


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
