"""Tokens that are given another role: ASIDE's embedding intervention (arXiv 2503.10566, Sec. 6.3).

The token id carries the role, so a token that is given the role of an instruction is embedded as one: by ASIDE without
the rotation, by ISE with the instruction's shift. Nothing else of the prompt changes.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from dataclasses import replace

from bulwark.data.records import TurnRole
from bulwark.prompts.builder import Prompt, PromptBuilder


def with_role(prompt: Prompt, places: Collection[int], role: TurnRole, builder: PromptBuilder) -> Prompt:
    """The prompt with the tokens at `places` in this role, as `builder`, which made it, numbers roles."""
    number, chosen, vocabulary = builder.numbers[role], set(places), builder.vocabulary
    roles = [number if place in chosen else own for place, own in enumerate(prompt.roles)]
    ids = [one % vocabulary + vocabulary * own for one, own in zip(prompt.ids, roles, strict=True)]
    return replace(prompt, ids=ids, roles=roles)


def elsewhere(places: Sequence[int], count: int, key: str) -> list[int]:
    """At most `count` of the places, consecutive ones, from a start that `key` decides: what a control changes."""
    width = min(count, len(places))
    start = random.Random(key).randint(0, len(places) - width)
    return list(places[start : start + width])
