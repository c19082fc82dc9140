"""What a person sees while a model trains: a bar on a terminal, a line now and then in a log file, TensorBoard.

And, where the user asks for one, a tracker: a package with `init`, `log` and `finish` as W&B has them. None of it has
any effect on what is trained.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import logging
import math
import os
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from types import ModuleType

from bulwark.errors import ConfigurationError, nearest

log = logging.getLogger(__name__)

_SECONDS_BETWEEN_LINES = 10.0
_CURVE_POINTS = 200
_WIDE = 100  # columns of a terminal that has room for name and bar
TRACKER = "BULWARK_TRACKER"  # the variable through which jobs are told, see docs/reports.md
TRACKERS = ("none", "trackio", "wandb")
PROJECT = "bulwark"


def tracker_named(name: str) -> str | None:
    """The package that a tracker is, None for "none".

    Raises ConfigurationError, which says what to do, for an unknown name and for a package that is not installed.
    """
    if name not in TRACKERS:
        raise ConfigurationError(
            f'tracker: "{name}" is unknown.{nearest(name, TRACKERS)} Write one of {", ".join(TRACKERS)}.'
        )
    if name == "none":
        return None
    if importlib.util.find_spec(name) is None:
        raise ConfigurationError(
            f"tracker: the package {name} is not installed, and bulwark does not bring it along. Install it "
            f"(pip install {name}), or leave the tracker out; TensorBoard's events are written in any case."
        )
    return name


class Progress:
    """Shows the training from optimizer step `done` of `total`; a context manager.

    visible: False on all but the main process. events: folder for TensorBoard, None for none. The variable TRACKER
    names the tracker that gets the same numbers; raises ConfigurationError, on every process, if there is none such.
    """

    def __init__(self, title: str, done: int, total: int, *, visible: bool = True, events: Path | None = None) -> None:
        self.title, self.done, self.total, self.visible = title, done, total, visible
        self.started = self.last_line = time.monotonic()
        self.first, self.tokens, self.loss = done, 0, float("nan")
        self.bar = _bar() if visible and sys.stderr.isatty() else None
        self.task = self.bar.add_task(title, total=total, completed=done, rates="") if self.bar else None
        self.events = None
        self.tracker: ModuleType | None = None
        package = tracker_named(os.environ.get(TRACKER) or "none")
        if visible and package is not None:
            self.tracker = importlib.import_module(package)
            with self._tracking():
                self.tracker.init(project=PROJECT, name=title)
        if visible and events is not None:
            from torch.utils.tensorboard import SummaryWriter

            with self._writing():
                self.events = SummaryWriter(str(events), purge_step=done + 1)

    def __enter__(self) -> Progress:
        if self.bar:
            self.bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self.bar:
            self.bar.stop()
        if self.events:
            with self._writing():
                self.events.close()
        if self.tracker:
            with self._tracking():
                self.tracker.finish()
        if self.visible and kind is None:
            log.info("%s", self._line())

    def advance(self, step: int, tokens: int) -> None:
        """Show that `step` steps are done, the last of which read `tokens` tokens."""
        self.done, self.tokens = step, self.tokens + tokens
        if not self.visible:
            return
        if self.bar:
            self.bar.update(self.task, completed=step, rates=self._rates())
        elif time.monotonic() - self.last_line >= _SECONDS_BETWEEN_LINES:
            self.last_line = time.monotonic()
            log.info("%s", self._line())

    def record(self, step: int, values: dict[str, float | None]) -> None:
        """Write numbers of one step, but None, to TensorBoard and the tracker; the bar shows the last "loss/train"."""
        known = {name: value for name, value in values.items() if value is not None}
        self.loss = known.get("loss/train", self.loss)
        if self.events:
            with self._writing():
                for name, value in known.items():
                    self.events.add_scalar(name, value, step)
        if self.tracker:
            with self._tracking():
                self.tracker.log(known, step=step)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """No training ends because its curves cannot be written."""
        try:
            yield
        except OSError as error:
            self.events = None
            log.warning("TensorBoard's events can no longer be written (%s).", error)

    @contextlib.contextmanager
    def _tracking(self) -> Iterator[None]:
        """Nor because a tracker fails, which may do so in ways of its own: it is told, and tracked no more."""
        try:
            yield
        except Exception as error:
            name = self.tracker.__name__ if self.tracker else ""
            self.tracker = None
            log.warning("The tracker %s has failed (%s: %s); the training goes on.", name, type(error).__name__, error)

    def _rates(self) -> str:
        rate = self.tokens / max(time.monotonic() - self.started, 1e-9)
        return f"loss {self.loss:.4f}  {rate:,.0f} tokens/s"

    def _line(self) -> str:
        steps = self.done - self.first
        passed = time.monotonic() - self.started
        left = passed / steps * (self.total - self.done) if steps else 0.0
        clocks = [timedelta(seconds=round(seconds)) for seconds in (passed, left)]
        return (
            f"{self.title}: step {self.done}/{self.total} ({100 * self.done / max(1, self.total):.0f} %)  "
            f"{self._rates()}  {clocks[0]} passed, {clocks[1]} left"
        )


def curve(losses: Sequence[float | None]) -> list[list[float | None]]:
    """The losses of steps as at most 200 points [last step, mean]; null where none of a point's steps has a loss."""
    width = max(1, math.ceil(len(losses) / _CURVE_POINTS))
    points: list[list[float | None]] = []
    for start in range(0, len(losses), width):
        known = [loss for loss in losses[start : start + width] if loss is not None]
        points.append([min(start + width, len(losses)), sum(known) / len(known) if known else None])
    return points


def _bar():
    from rich import progress
    from rich.console import Console

    console = Console(stderr=True)
    # What a narrow terminal has no room for is left out, not cut: the name stands in the lines before.
    wide = console.width >= _WIDE
    columns = [
        *(("{task.description}", progress.BarColumn()) if wide else ()),
        progress.MofNCompleteColumn(),
        "{task.fields[rates]}",
        progress.TimeElapsedColumn(),
        "left",
        progress.TimeRemainingColumn(),
    ]
    return progress.Progress(*columns, console=console, refresh_per_second=2)
