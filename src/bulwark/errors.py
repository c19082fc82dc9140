"""Errors that the user's input causes: one family, each message saying where the fault is and how to mend it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

Result = TypeVar("Result")


class BulwarkError(Exception):
    """The input, the configuration or the machine does not allow the request; the message says what to do."""


class ConfigurationError(BulwarkError):
    """A key, a value or a name in the configuration (or in a requested path) is not valid."""


class CombinationError(ConfigurationError):
    """Every key is known and every value is possible, but not all of them together."""


class RecordError(BulwarkError):
    """A data file holds a record that cannot be used; the message names file, line and reason."""


class CheckpointError(BulwarkError):
    """A checkpoint folder is incomplete, changed, or not what its manifest says."""


def of_record(identity: str, function: Callable[..., Result], *arguments: Any) -> Result:
    """Call `function`; a BulwarkError that it raises names the record, as a RecordError."""
    try:
        return function(*arguments)
    except BulwarkError as error:
        raise RecordError(f'The record "{identity}": {error}') from error


def without_credentials(text: str) -> str:
    """The text with names, passwords and queries (which hold tokens) taken out of the addresses in it."""
    text = re.sub(r"(\w+://)[^/\s@\"']+@", r"\1", text)
    return re.sub(r"(\w+://[^\s?#\"']+)\?[^\s\"')>]+", r"\1?…", text)


def nearest(name: str, options: Iterable[str]) -> str:
    """Return ` Did you mean "x"?` for the option closest to `name`, or the list of options, to end a message with."""
    known = sorted(str(option) for option in options)
    close = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
    if close:
        return f' Did you mean "{close[0]}"?'
    return f" Known: {', '.join(known)}." if known else ""
