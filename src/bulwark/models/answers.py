"""The shape of an answer, and the file that keeps the finished answers of an interrupted run."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sized
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict

from bulwark import interrupts, seals

log = logging.getLogger(__name__)


ANSWER = "answer"  # the variant of a record that is answered once


@dataclass(frozen=True)
class Answer:
    """What a model said to the prompt `id`, or, as a line of an answers file, to a variant of the record `id`.

    tokens: generated tokens, the stop token included. finish: "stop" if there was one, "decided" if the caller needed
    no more of the text, else "length". truncated: the prompt was cut.
    """

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)  # for whoever reads a file of them

    id: str
    response: str
    tokens: int
    finish: Literal["stop", "length", "decided"]
    truncated: bool
    variant: str = ANSWER

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class Partial:
    """Finished answers on disk: a line with the fingerprint, then one line per answer, appended as they come.

    Every line holds a digest of itself; from the first damaged one on, answers are generated again.

    settled: all that decides the answers beside what is digested with each. path None keeps nothing.
    """

    def __init__(self, path: Path | None, settled: str):
        self._path = path
        self._fingerprint = hashlib.sha256(settled.encode()).hexdigest()
        self._file = None
        self.answers: dict[tuple[str, str], Answer] = {}
        self._good_bytes = 0
        if path is not None and path.exists():
            self._read(path)

    def resumable(self, made: Sized, asked: Sized, what: str = "answers") -> AbstractContextManager[None]:
        """Within it, a process that is told to end goes on to the next `flush` of what is made and kept here."""
        if self._path is None:
            return nullcontext()
        return interrupts.resumable(lambda: f"{len(made)} of {len(asked)} {what} are kept in {self._path}")

    def digest(self, question: Any) -> str:
        """What tells whether the same was asked; empty where nothing is kept."""
        return hashlib.sha256(repr(question).encode()).hexdigest()[:16] if self._path is not None else ""

    def __enter__(self) -> Partial:
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("ab")
            self._file.truncate(self._good_bytes)
            if not self._good_bytes:
                self._write({"fingerprint": self._fingerprint})
        return self

    def __exit__(self, *_) -> None:
        if self._file is not None:
            self._file.close()

    def append(self, answer: Answer, prompt_digest: str) -> None:
        if self._file is not None:
            self._write({**answer.as_dict(), "prompt": prompt_digest})

    def flush(self) -> None:
        if self._file is not None:
            self._file.flush()

    def _write(self, row: dict[str, Any]) -> None:
        self._file.write(seals.signed_line(row, self._fingerprint if "id" in row else "").encode())

    def _read(self, path: Path) -> None:
        """Take the whole lines of a file with our fingerprint; a line that was cut off or damaged ends it."""
        with path.open("rb") as file:
            for number, line in enumerate(file):
                if not line.endswith(b"\n"):
                    log.info("The last line of %s was cut off; its answer is generated again", path)
                    return
                try:
                    row = seals.row_of(line, self._fingerprint if number else "")
                    if number:
                        prompt = row.pop("prompt")
                        self.answers[row["id"], prompt] = Answer(**row)
                    elif row["fingerprint"] != self._fingerprint:
                        log.warning("%s holds answers made under other settings; they are discarded", path)
                        return
                except (ValueError, KeyError, TypeError) as error:
                    told = "%s, line %d: damaged (%s); its answer and all behind it are generated again"
                    log.warning(told, path, number + 1, error)
                    return
                self._good_bytes += len(line)
