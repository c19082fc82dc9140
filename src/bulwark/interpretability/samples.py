"""Which records and tokens an analysis looks at: drawn without replacement, and split by prompt. Free of torch.

A probe that is tried on tokens of the prompts that it was trained on knows their words, and how each was read in its
context. So whole prompts are held out; `as_published` is the split of the authors' code, over tokens.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from bulwark.errors import RecordError

Item = TypeVar("Item")

INSTRUCTION, DATA = 1, 0  # the labels of a token


@dataclass(frozen=True)
class Token:
    """A token of the text of a turn: in prompt number `prompt`, at `place`, with its plain id; label: its role."""

    prompt: int
    place: int
    id: int
    label: int


def drawn(items: Sequence[Item], count: int, seed: int, where: Path | str) -> list[Item]:
    """`count` of the items, each at most once, in an order that the seed decides.

    Raises RecordError if there are fewer.
    """
    if len(items) < count:
        raise RecordError(f"{where} has {len(items)} records that can be used; {count} are asked for. Ask for fewer.")
    return random.Random(seed).sample(list(items), count)


def held_out(
    tokens: Sequence[Token], prompts: int, share: float, seed: int, *, as_published: bool = False
) -> list[bool]:
    """Of each token whether it is held out: those of this share of the prompts, the first ones.

    prompts: how many there are, in the random order of `drawn`. as_published: a share of the tokens, whatever prompts
    they are of, as in the authors' code.
    """
    if not as_published:
        return [token.prompt < number_held_out(prompts, share) for token in tokens]
    chosen = set(random.Random(seed).sample(range(len(tokens)), round(share * len(tokens))))
    return [index in chosen for index in range(len(tokens))]


def number_held_out(prompts: int, share: float) -> int:
    """How many of the prompts are held out; at least one is, and at least one is not."""
    return min(max(1, round(share * prompts)), prompts - 1)


def balanced(tokens: Sequence[Token], seed: int) -> list[Token]:
    """As many instruction tokens as data tokens of every prompt: of the more frequent label some are left out."""
    return _equal_parts(tokens, [token.prompt for token in tokens], seed)


def matched(tokens: Sequence[Token], seed: int) -> list[Token]:
    """As many instruction tokens as data tokens of every id: the word itself says nothing about the label."""
    return _equal_parts(tokens, [token.id for token in tokens], seed)


def _equal_parts(tokens: Sequence[Token], groups: Sequence[int], seed: int) -> list[Token]:
    """Within each group as many tokens of one label as of the other, drawn without replacement, in their order."""
    parts: dict[int, dict[int, list[int]]] = defaultdict(lambda: {INSTRUCTION: [], DATA: []})
    for index, (token, group) in enumerate(zip(tokens, groups, strict=True)):
        parts[group][token.label].append(index)
    generator = random.Random(seed)
    kept: set[int] = set()
    for _, part in sorted(parts.items()):
        fewest = min(map(len, part.values()))
        for label in (INSTRUCTION, DATA):
            kept.update(generator.sample(part[label], fewest))
    return [token for index, token in enumerate(tokens) if index in kept]
