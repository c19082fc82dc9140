"""What can be set about attacks on a model's input. Torch-free: the workflow reads it when it plans."""

from __future__ import annotations

from pydantic import Field

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
