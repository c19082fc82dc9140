"""How strong an intervention is in each optimizer step, and from which step on it should grow. Torch-free.

Guan et al. (arXiv 2609.10142): eq. 3 and 4 (the rise called PIS), the authors' code (decline, withdrawal), App. E (the
onset). Steps are optimizer steps from 0 over all epochs; the authors count micro-batches, anew in each epoch.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field, model_validator

from bulwark.errors import BulwarkError, ConfigurationError
from bulwark.settings import Closed
from bulwark.training.settings import TrainingSettings

_WINDOW, _SHARE_OF_TAIL, _SMALLEST_TAIL, _WIDTH, _STAYING = 10, 0.2, 10, 2.5, 0.9  # see `detect_onset`


class DetectedOnset(Closed):
    """An onset found in another training: that of the step `detected_from` on the same parent at the same seed.

    That has to steer with the same vectors at constant strength (`steer`). share: of the step that is found.
    """

    detected_from: str
    share: float = Field(1.0, gt=0, le=1)

    def inputs(self) -> dict[str, str]:
        """The manifest of that training, as a path template."""
        return {"onset_from": f"checkpoints/{{model}}/{{prefix}}{self.detected_from}/seed{{seed}}/checkpoint.json"}


class ScheduleSettings(Closed):
    """The strength over a training, as a factor on the intervention's alpha.

    shape: "constant"; "rise" from 1 to `multiplier` (2 if left out, the paper's); "decline" from 1 to 0.
    onset: the strength is alpha in the first `onset` steps (0 … onset-1) and changes linearly after them.
    horizon: the number of steps after which the end of the change is reached; all steps of the training if left out.
    withdraw_at: with "constant", the number of steps that are steered; there is no intervention in later ones.
    """

    shape: Literal["constant", "rise", "decline"] = "constant"
    onset: int | DetectedOnset | None = None
    horizon: int | None = Field(None, ge=1)
    multiplier: float | None = Field(None, gt=1)
    withdraw_at: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _consistent(self) -> ScheduleSettings:
        if self.shape == "constant":
            given = [name for name in ("onset", "horizon", "multiplier") if getattr(self, name) is not None]
            if given:
                raise ValueError(f"a constant strength has no {', '.join(given)}; give a shape: rise or decline")
        elif self.withdraw_at is not None:
            raise ValueError(f"withdraw_at is for a constant strength, the shape here is {self.shape}; leave one out")
        if self.shape == "decline" and self.multiplier is not None:
            raise ValueError("a multiplier is what the strength rises to; a decline goes to 0")
        if isinstance(self.onset, int):
            if self.onset < 0:
                raise ValueError("onset is a number of optimizer steps, from 0")
            if self.horizon is not None and self.onset >= self.horizon:
                raise ValueError(f"the onset {self.onset} must come before the horizon {self.horizon}")
        return self

    def over(self, total: int, alpha: float, detected: int | None = None) -> Schedule:
        """This schedule over a training of `total` optimizer steps, on the strength `alpha`, with the `detected` step.

        Raises ConfigurationError for an onset or a withdrawal that lies behind the end of the training.
        """
        onset = self.onset or 0
        if isinstance(onset, DetectedOnset):
            if detected is None:
                raise BulwarkError("The onset of this schedule is to be detected; detect it first.")
            onset = round(onset.share * detected)
        horizon = self.horizon or total
        if self.shape != "constant" and onset >= min(horizon, total):
            raise ConfigurationError(
                f"schedule: the onset {onset} lies behind the last of {min(horizon, total)} optimizer steps, so the "
                "strength would never change. Take an earlier one, or the shape constant."
            )
        if self.withdraw_at is not None and self.withdraw_at >= total:
            raise ConfigurationError(
                f"schedule: withdraw_at {self.withdraw_at}, but the training has only {total} optimizer steps, so the "
                "intervention would never be withdrawn. Take an earlier step, or leave withdraw_at out."
            )
        end = {"constant": 1.0, "rise": self.multiplier or 2.0, "decline": 0.0}[self.shape]
        return Schedule(alpha, end, onset, horizon, total if self.withdraw_at is None else self.withdraw_at, total)


def check_within(schedule: ScheduleSettings, training: TrainingSettings) -> None:
    """Raise ValueError if the schedule does not fit into a training whose number of steps is set."""
    if training.max_steps is None or detected_from(schedule) is not None:
        return
    try:
        schedule.over(training.max_steps, 1.0)
    except ConfigurationError as error:
        raise ValueError(f"training.max_steps is {training.max_steps}; {str(error).removesuffix('.')}") from None


def detected_from(schedule: Any) -> str | None:
    """The step in whose training the onset of `schedule` is to be found, if it is to be found in one."""
    onset = getattr(schedule, "onset", None)
    return onset.detected_from if isinstance(onset, DetectedOnset) else None


@dataclass(frozen=True)
class Strength:
    """alpha up to `onset`, then linearly to alpha·end, reached at `horizon`, whatever the unit of progress is."""

    alpha: float
    end: float
    onset: float
    horizon: float

    def at(self, progress: float) -> float:
        share = (progress - self.onset) / max(1, self.horizon - self.onset)
        return self.alpha * (1.0 + (self.end - 1.0) * min(1.0, max(0.0, share)))


@dataclass(frozen=True)
class Schedule(Strength):
    """The strength in each of `total` optimizer steps. steered: how many of them, the first ones, have any."""

    steered: int
    total: int

    def alpha_at(self, step: int) -> float:
        """The strength in optimizer step `step` (from 0), which is t = step + 1 in the authors' formula:

        alpha·(1 + (end - 1)·(t - onset)/(horizon - onset)).
        """
        return self.at(step + 1) if self.is_on(step) else 0.0

    def mean_alpha(self) -> float:
        """The mean of the strength over all steps: what a constant one has to be compared with."""
        return statistics.fmean(self.alpha_at(step) for step in range(self.total))

    def is_on(self, step: int) -> bool:
        """Whether there is an intervention in step `step`."""
        return step < self.steered


@dataclass(frozen=True)
class Onset:
    """found: whether `step` is more than the middle of the training. band: (lowest, highest) value once settled."""

    step: int
    found: bool
    band: tuple[float, float]


def detect_onset(cosines: Sequence[float | None]) -> Onset:
    """Where a series settles (App. E): cos(g_h, v) per optimizer step of a training at constant strength.

    The tail is the last fifth of the series, 10 values at least; the band is its mean ± 2.5 standard deviations. The
    onset is the first step before the tail whose smoothed value (mean over 10 steps around it) lies in the band with
    nine in ten of all later ones; the middle of the training if there is none. (The paper says neither this nor where
    the window lies.) A step without a value (None) is left out. Raises BulwarkError for a tail without values.
    """
    tail = max(_SMALLEST_TAIL, round(_SHARE_OF_TAIL * len(cosines)))
    settled = [value for value in cosines[-tail:] if value is not None]
    if not settled:
        raise BulwarkError("No onset can be detected: the series of cosines is empty, or has no values at its end.")
    mean, width = statistics.fmean(settled), _WIDTH * statistics.pstdev(settled)
    width += 1e-12 * max(1.0, abs(mean))  # a constant series lies in its own band, whatever the rounding
    band = (mean - width, mean + width)
    smoothed = [_smoothed(cosines, step) for step in range(len(cosines))]
    inside = [value is not None and band[0] <= value <= band[1] for value in smoothed]
    for step in range(len(cosines) - tail):
        later = inside[step + 1 :]
        if inside[step] and sum(later) >= _STAYING * len(later):
            return Onset(step, True, band)
    return Onset(len(cosines) // 2, False, band)


def _smoothed(values: Sequence[float | None], step: int) -> float | None:
    """The mean over ten values around a step, fewer at the ends."""
    window = values[max(0, step - _WINDOW // 2) : step + (_WINDOW + 1) // 2]
    known = [value for value in window if value is not None]
    return statistics.fmean(known) if known else None
