"""Trainings that stop on the way and begin again, and the plans of the programs that run them on several ranks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from bulwark.training.objectives import Objective

Kind = TypeVar("Kind", bound=Objective)
Training = dict[str, Any]


class Interrupted(Exception):
    """A training has stopped where the test wants it."""


def stopping(objective: Kind, at: int | None, hook: str = "after_backward") -> Kind:
    """The objective itself, which now stops the training, on all ranks, when that optimizer step comes to the hook."""
    go_on = getattr(objective, hook)

    def stop(engine: Any, step: int, total: int) -> None:
        if step == at:
            raise Interrupted
        go_on(engine, step, total)

    setattr(objective, hook, stop)
    return objective


def attempts(training: Training) -> list[int | None]:
    """For each time that a training of a plan begins, the step at which it stops; it ends in the last."""
    return [training["interrupt"], None] if "interrupt" in training else [None]


def resumed(trainings: Mapping[str, Training], names: Iterable[str], at: int) -> dict[str, Training]:
    """Trainings of these names, as `<name>_resumed`, that stop in that step and begin again with what was saved."""
    return {
        f"{name}_resumed": trainings[name]
        | {"interrupt": at, "settings": trainings[name]["settings"] | {"save_every": 2}}
        for name in names
    }


def plans(both: Mapping[str, Training], two_only: Mapping[str, Training]) -> dict[int, list[Training]]:
    """By the number of ranks, what they train."""
    return {
        ranks: [{"name": name} | training for name, training in trainings.items()]
        for ranks, trainings in ((1, both), (2, {**both, **two_only}))
    }
