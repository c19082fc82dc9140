"""The recipe algebra: a checkpoint's name is its history.

A recipe is a chain of steps joined by `+`, applied left to right to the base model: `aside`, `random_map+tar`,
`aside+heretic`. `base` is the model itself, without any step. Whether a step defends or attacks plays no part.

`sft@40` is the training `sft` after 40 optimizer steps: a snapshot that the training keeps, if its settings list it
under training.snapshots. It is a step like any other: `sft@40+heretic`.

`relearn.17` is trial 17 of the step `relearn`: the step with the settings of point 17 of its `space`. It is a step like
any other, too: `tar+relearn.17@40`. In a study, `relearn.*` stands for as many trials as it says under `trials`.

`aside.best` is the trial of `aside` with the lowest validation loss: `aside.best+relearn`, `aside.best@40`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from itertools import product

from bulwark.errors import ConfigurationError, nearest

BASE = "base"
TRIALS = ".*"
BEST = ".best"
_STEP = re.compile(r"^(?P<name>[A-Za-z0-9_][A-Za-z0-9._-]*)(@[1-9][0-9]*)?$")
_TRIAL = re.compile(r"^(?P<name>.+)\.(?P<number>0|[1-9][0-9]*)$")


def steps_of(recipe: str) -> tuple[str, ...]:
    """Return the steps of `recipe` in the order of application; none for `base`.

    Raises ConfigurationError if the text is not a chain of step names.
    """
    if recipe == BASE:
        return ()
    steps = tuple(recipe.split("+"))
    for step in steps:
        matched = _STEP.match(step)
        if matched is None or matched["name"] == BASE:
            raise ConfigurationError(
                f'Recipe "{recipe}": "{step}" is not the name of a step. Write steps joined by "+", left to right, '
                f'such as "aside+heretic", or "{BASE}" alone for the model without any step. "sft@40" is the snapshot '
                'of sft after 40 optimizer steps, "relearn.3" trial 3 of relearn, "aside.best" the trial of aside with '
                "the lowest validation loss."
            )
    return steps


def snapshot_of(step: str) -> tuple[str, int | None]:
    """The name of a step of a recipe, and after how many optimizer steps it is meant; None for its end."""
    name, _, at = step.partition("@")
    return name, int(at) if at else None


def trial_of(name: str) -> tuple[str, int | None]:
    """The step that a trial is of, and its number; None for what is no trial. The names of steps do not end so."""
    matched = _TRIAL.match(name)
    return (matched["name"], int(matched["number"])) if matched else (name, None)


def best_of(name: str) -> str | None:
    """The step whose best trial is meant, `aside.best` → `aside`; None for anything else."""
    return name.removesuffix(BEST) if name.endswith(BEST) else None


def entity_of(name: str) -> str:
    """The step of the configuration that is meant by one of a recipe: `relearn.17@40`, `relearn.best` → `relearn`."""
    name = snapshot_of(name)[0]
    return best_of(name) or trial_of(name)[0]


def expanded(recipe: str, trials: Mapping[str, int], where: str = "") -> list[str]:
    """The recipes that one of a study stands for: `tar+relearn.*` → `tar+relearn.0`, `tar+relearn.1`, …

    Raises ConfigurationError, naming `where`, for `.*` after a step of which `trials` does not say how many.
    """
    parts: list[list[str]] = []
    for step in recipe.split("+"):
        name, at, snapshot = step.partition("@")
        base = name.removesuffix(TRIALS)
        if base != name and base not in trials:
            raise ConfigurationError(
                f'{where}: "{recipe}" stands for trials of "{base}", and the study does not say how many. Write '
                f"trials: {{{base}: 16}} beside its recipes, say."
            )
        numbers = range(trials[base]) if base != name else ()
        parts.append([f"{base}.{number}{at}{snapshot}" for number in numbers] if base != name else [step])
    return ["+".join(steps) for steps in product(*parts)]


def to_its_end(recipe: str) -> str:
    """The recipe whose last step makes the snapshot that `recipe` ends with: `a+sft@40` → `a+sft`."""
    return "+".join([*steps_of(recipe)[:-1], snapshot_of(last_step(recipe))[0]])


def parent_of(recipe: str) -> str:
    """Return the recipe before the last step: `a+b` → `a`, `a` → `base`. Raises ConfigurationError for `base`."""
    steps = steps_of(recipe)
    if not steps:
        raise ConfigurationError(f'Recipe "{BASE}" has no parent: it is the model itself.')
    return "+".join(steps[:-1]) or BASE


def last_step(recipe: str) -> str:
    """Return the last step of `recipe`. Raises ConfigurationError for `base`."""
    parent_of(recipe)
    return steps_of(recipe)[-1]


def check(recipe: str, known_steps: Iterable[str], where: str) -> None:
    """Raise ConfigurationError, naming `where` and the nearest valid name, if `recipe` uses an unknown step.

    `.*` may stand for the numbers of trials.
    """
    known = list(known_steps)
    try:
        steps = steps_of(re.sub(r"\.\*(?=[@+]|$)", ".0", recipe))
    except ConfigurationError as error:
        raise ConfigurationError(f"{where}: {error}") from None
    for step in map(entity_of, steps):
        if step not in known:
            raise ConfigurationError(
                f'{where}: the recipe "{recipe}" uses the unknown step "{step}".{nearest(step, known)} '
                "Steps are the files of config/steps/."
            )
