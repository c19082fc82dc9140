"""How long authors say that a job of theirs took.

Such a time is expected of the same step on the same model. On other models, and of other steps of its kind, the time
is in proportion to the work, so that of two models the larger one never takes less.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """A step on a model took `hours` on `gpus` of `accelerator`; source: who says so.

    work: of that training, as `amounts.training_work` counts it of the step as it stands in config/steps. An overlay
    that cuts the step down does not change what the authors did.
    """

    step: str
    model: str
    work: float
    hours: float
    gpus: int
    accelerator: str
    source: str


_ASIDE = Published(
    "aside",
    "llama2-13b",
    424_813_248.0,
    3.0,
    8,
    "h100",
    'arXiv 2503.10566, App. C: "at most 2 to 3 hours" a model on 8 H100, with offloading; 3 is taken for the largest',
)
# {kind of step: the time that is known of one step of that kind}
OF_KIND = {
    "vanilla": _ASIDE,
    "ise": _ASIDE,
    "aside": _ASIDE,
    "tar": Published(
        "tar",
        "llama3-8b-instruct",
        3_637_248_000.0,
        18.0,
        8,
        "a100",
        "the authors of arXiv 2408.00761 to their reviewers: 18 hours",
    ),
    "secalign": Published(
        "secalign",
        "llama3.1-8b-instruct",
        637_219_872.0,
        0.5,
        8,
        "h100",
        "arXiv 2507.02735, Sec. 4.1: half an hour on 8 H100",
    ),
}
