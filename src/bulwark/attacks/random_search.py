"""Random search over an adversarial suffix by log-likelihoods alone (Andriushchenko et al. 2024, arXiv 2404.02151).

A query exchanges some neighbouring tokens of the best suffix, at a random place, for random ones; the result is kept if
the wanted answer has become likelier. How many are exchanged falls with the probability p of the answer, as in the
authors' code: `most` for p ≤ 0.01, a half for p ≤ 0.1, a quarter above, and at least one. There p is of the first token
of the answer, here of all of it. Without the authors' restarts and manual prompt: the command is the prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from bulwark.attacks.adaptive import SuffixAttacker, probability
from bulwark.attacks.gcg import Gcg
from bulwark.attacks.settings import GcgSettings, RandomSearchSettings
from bulwark.attacks.suffixes import Case
from bulwark.models.open import LanguageModel

Losses = Callable[[Sequence[tuple[list[int], int]]], Tensor]
"""The mean cross-entropy of the last tokens of rows (ids, how many), on the CPU: `Gcg.losses`."""

SHARES = ((0.01, 1), (0.1, 2), (1.0, 4))  # up to this probability, `most` over this
TRIES = 100  # substitutions drawn in a query until a text gives one


class RandomSearch:
    """On one model. The cases hold all state; a draw depends on the seed, the case's number and its queries so far.

    vocabulary: rows of the model's embedding.
    """

    def __init__(
        self, losses: Losses, settings: RandomSearchSettings, candidates: Tensor, vocabulary: int, seed: int = 0
    ) -> None:
        self._losses, self.settings, self.seed = losses, settings, seed
        self._candidates, self._vocabulary = candidates.cpu().numpy(), vocabulary

    @classmethod
    def of(cls, language_model: LanguageModel, settings: RandomSearchSettings, seed: int = 0) -> RandomSearch:
        """On an open model, whose tokenizer says which tokens may be written."""
        measured = Gcg.of(language_model, GcgSettings(allow_non_ascii=settings.allow_non_ascii), seed)
        return cls(measured.losses, settings, measured.candidates, measured.vocabulary, seed)

    def run(self, cases: Sequence[Case], steps: int) -> None:
        """Ask for `steps` log-likelihoods of each case."""
        for _ in range(steps):
            self.step(cases)

    def step(self, cases: Sequence[Case]) -> None:
        """One query of every case; the first is of its present tokens."""
        proposals = [case.tokens if case.loss is None else self._proposal(case) for case in cases]
        rows = [
            (case.rows[0].filled(tokens, self._vocabulary), case.rows[0].target)
            for case, tokens in zip(cases, proposals, strict=True)
        ]
        with torch.no_grad():
            losses = self._losses(rows).tolist()
        for case, tokens, loss in zip(cases, proposals, losses, strict=True):
            case.steps += 1
            if case.loss is None or loss < case.loss:
                case.tokens, case.loss = list(tokens), loss
                case.best, case.best_loss = list(tokens), loss

    def exchanged(self, loss: float, target: int) -> int:
        """How many neighbouring tokens a substitution exchanges."""
        p = probability(loss, target)
        return max(1, self.settings.most // next(share for bound, share in SHARES if p <= bound))

    def _proposal(self, case: Case) -> list[int]:
        """The tokens with a few neighbours exchanged such that a text gives them; the present ones if none is found."""
        draw = np.random.default_rng([self.seed, case.number, case.steps])
        count = min(self.exchanged(case.loss or 0.0, case.rows[0].target), len(case.tokens))
        for _ in range(TRIES):
            place = int(draw.integers(len(case.tokens) - count + 1))
            tokens = list(case.tokens)
            tokens[place : place + count] = draw.choice(self._candidates, count).tolist()
            case.drawn += 1
            if case.holds(tokens):
                return tokens
            case.refused += 1
        return list(case.tokens)


def attacker(language_model: LanguageModel, settings: RandomSearchSettings, seed: int) -> SuffixAttacker:
    """Random search against injected commands on this model."""
    return SuffixAttacker(RandomSearch.of(language_model, settings, seed), language_model.builder, settings.suffix)
