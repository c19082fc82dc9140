"""The recipe algebra: a checkpoint's name is its history.

A recipe is a chain of steps joined by `+`, applied left to right to the base model: `aside`, `random_map+tar`,
`aside+heretic`. `base` is the model itself, without any step. Whether a step defends or attacks plays no part.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from bulwark.errors import ConfigurationError, nearest

BASE = "base"
_STEP = re.compile(r"^[A-Za-z0-9_][A-Za-z0-9._-]*$")


def steps_of(recipe: str) -> tuple[str, ...]:
    """Return the steps of `recipe` in the order of application; none for `base`.

    Raises ConfigurationError if the text is not a chain of step names.
    """
    if recipe == BASE:
        return ()
    steps = tuple(recipe.split("+"))
    for step in steps:
        if step == BASE or not _STEP.match(step):
            raise ConfigurationError(
                f'Recipe "{recipe}": "{step}" is not the name of a step. Write steps joined by "+", left to right, '
                f'such as "aside+heretic", or "{BASE}" alone for the model without any step.'
            )
    return steps


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
    """Raise ConfigurationError, naming `where` and the nearest valid name, if `recipe` uses an unknown step."""
    known = list(known_steps)
    try:
        steps = steps_of(recipe)
    except ConfigurationError as error:
        raise ConfigurationError(f"{where}: {error}") from None
    for step in steps:
        if step not in known:
            raise ConfigurationError(
                f'{where}: the recipe "{recipe}" uses the unknown step "{step}".{nearest(step, known)} '
                "Steps are the files of config/steps/."
            )
