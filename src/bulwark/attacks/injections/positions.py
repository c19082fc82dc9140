"""Where in a context an attack is put: BIPIA's three positions (Yi et al. 2023, arXiv 2312.14197).

    end       context, line break, attack
    start     attack, line break, context
    middle    in front of one of the context's sentences, a line break on either side; sentences as Punkt finds them
              (Kiss and Strunk 2006) without training, the one that `random.Random(seed)` draws

The seed alone decides how far into a context the attack goes, so that every context of as many sentences has it in
front of the same one, as in the authors' code.
"""

from __future__ import annotations

import random
from functools import lru_cache
from typing import Literal

Position = Literal["end", "start", "middle"]


def inserted(context: str, attack: str, position: Position, seed: int) -> str:
    """The context with the attack in it."""
    if position == "end":
        return f"{context}\n{attack}"
    if position == "start":
        return f"{attack}\n{context}"
    start = _start_of_a_sentence(context, seed)
    return f"{context[:start]}\n{attack}\n{context[start:]}"


@lru_cache(maxsize=1024)  # every attack on a context asks for the same
def _start_of_a_sentence(context: str, seed: int) -> int:
    from nltk.tokenize.punkt import PunktSentenceTokenizer

    sentences = list(PunktSentenceTokenizer().span_tokenize(context))
    [(start, _)] = random.Random(seed).sample(sentences, k=1)
    return start
