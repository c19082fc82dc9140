"""What a person sees while a model trains: a bar on a terminal, a line now and then in a log file, TensorBoard."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

log = logging.getLogger(__name__)

_SECONDS_BETWEEN_LINES = 10.0
_WIDE = 100  # columns of a terminal that has room for name and bar


class Progress:
    """Shows the training from optimizer step `done` of `total`; a context manager.

    visible: False on all but the main process. events: folder for TensorBoard, None for none.
    """

    def __init__(self, title: str, done: int, total: int, *, visible: bool = True, events: Path | None = None) -> None:
        self.title, self.done, self.total, self.visible = title, done, total, visible
        self.started = self.last_line = time.monotonic()
        self.first, self.tokens, self.loss = done, 0, float("nan")
        self.bar = _bar() if visible and sys.stderr.isatty() else None
        self.task = self.bar.add_task(title, total=total, completed=done, rates="") if self.bar else None
        self.events = None
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

    def record(self, step: int, values: dict[str, float]) -> None:
        """Write numbers of one step to TensorBoard; the bar shows the latest "loss/train"."""
        self.loss = values.get("loss/train", self.loss)
        if self.events:
            with self._writing():
                for name, value in values.items():
                    self.events.add_scalar(name, value, step)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """No training ends because its curves cannot be written."""
        try:
            yield
        except OSError as error:
            self.events = None
            log.warning("TensorBoard's events can no longer be written (%s).", error)

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
