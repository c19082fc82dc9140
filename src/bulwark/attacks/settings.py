"""What can be set about attacks on a model's input. Torch-free: the workflow reads it when it plans."""

from __future__ import annotations

from abc import abstractmethod
from itertools import pairwise

from pydantic import Field, model_validator

from bulwark.settings import Closed, Text

TWENTY_MARKS = " ".join(["!"] * 20)


class GcgSettings(Closed):
    """Greedy coordinate gradient (Zou et al. 2023, arXiv 2307.15043, Alg. 1).

    steps: T, iterations of a whole attack. search_width: B, substitutions that are tried in an iteration. top_k: k,
        tokens with the largest negative gradient that are candidates for a place.
    suffix: the adversarial text to begin with; as many tokens as it has are optimised.
    allow_non_ascii: also try tokens that are printable but not ASCII.
    keep_best: an iteration whose substitutions are all worse changes nothing, so that the loss never rises. Alg. 1
        takes the best of them even then.
    """

    steps: int = Field(500, ge=1)
    search_width: int = Field(512, ge=1)
    top_k: int = Field(256, ge=1)
    suffix: Text = TWENTY_MARKS
    allow_non_ascii: bool = False
    keep_best: bool = False


class Budgeted(Closed):
    """An attack with a budget. at: smaller budgets at which its best text is answered, too, rising."""

    at: tuple[int, ...] = ()

    @property
    @abstractmethod
    def total(self) -> int:
        """The whole budget."""

    @property
    def budgets(self) -> tuple[int, ...]:
        """All budgets at which the best text is answered, the whole one last."""
        return (*self.at, self.total)

    @model_validator(mode="after")
    def _rising(self) -> Budgeted:
        rising = (0, *self.budgets)
        if any(later <= earlier for earlier, later in pairwise(rising)):
            raise ValueError(f"at: {list(self.at)} has to rise from 1 and stay below the whole budget, {self.total}")
        return self


class AdaptiveGcgSettings(GcgSettings, Budgeted):
    """GCG against one injected command. Its budget is in iterations, each a gradient and `search_width` queries."""

    @property
    def total(self) -> int:
        return self.steps


class RandomSearchSettings(Budgeted):
    """Random search over a suffix, from outside (Andriushchenko et al. 2024, arXiv 2404.02151, Sec. 3).

    queries: log-likelihoods that are asked for, the first of them of the first suffix. most: neighbouring tokens that
        are exchanged at once, as long as the answer is improbable.
    suffix, allow_non_ascii: as for GCG.
    """

    queries: int = Field(10_000, ge=1)
    most: int = Field(4, ge=1)
    suffix: Text = " ".join(["!"] * 25)
    allow_non_ascii: bool = False

    @property
    def total(self) -> int:
        return self.queries


class RewritingSettings(Budgeted):
    """A search over ways of writing a command into the data, from outside.

    queries: log-likelihoods that are asked for, the first of them of the plain command behind the data. explore: the
        probability of drawing a way as a whole; otherwise one part of the best so far is drawn anew.
    """

    queries: int = Field(100, ge=1)
    explore: float = Field(0.5, ge=0, le=1)

    @property
    def total(self) -> int:
        return self.queries
