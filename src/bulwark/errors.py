"""Errors that the user's input causes: one family, each message saying where the fault is and how to mend it."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Iterable
from typing import Any, TypeVar
from urllib.parse import quote, unquote

Result = TypeVar("Result")


class BulwarkError(Exception):
    """The input, the configuration or the machine does not allow the request; the message says what to do.

    Its text is shown without credentials, whoever shows it. diverged: what it ends is a training whose loss, or
    gradient, was no longer finite, which ends so whenever it is tried.
    """

    def __init__(self, *args: object, diverged: bool = False) -> None:
        super().__init__(*args)
        self.diverged = diverged

    def __str__(self) -> str:
        return without_credentials(super().__str__())


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
    """The text without what opens a door: the values of credentials in the environment, keys of known forms, names and
    passwords in addresses, and the queries and parameters of addresses, which hold tokens.

    The log of a job and the text of every BulwarkError pass through it; call it where anything else is written.
    """
    for secret in _secrets():
        text = text.replace(secret, "…")
    text = _KEYS.sub("…", text)
    text = _HEADERS.sub(r"\1…", text)
    for userinfo in _USERINFO:
        text = userinfo.sub(r"\1", text)
    text = _QUERY.sub(r"\1?…", text)
    return _PARAMETERS.sub(r"\1…", text)


_SCHEME = r"(?:\b[A-Za-z][\w+.-]*:/+|//)"  # one slash as well: what a path makes of an address
_NO_PORT = r"(?!\d{1,5}(?:[/?#\s\"']|$))"
_USERINFO = (
    # Inside of quotes a password may hold anything.
    re.compile(rf'(?<=")({_SCHEME})[^\s/@:"\[]*:{_NO_PORT}[^"\n]*@'),
    re.compile(rf"(?<=')({_SCHEME})[^\s/@:'\[]*:{_NO_PORT}[^'\n]*@"),
    re.compile(rf'({_SCHEME})[^\s/@:"\[]*:{_NO_PORT}[^\s"]*@'),
    re.compile(rf'({_SCHEME})[^\s/?#"<>]*@'),
)
_QUERY = re.compile(rf"({_SCHEME}[^\s?#\"']+)\?[^\s\"')>]+")
_PARAMETERS = re.compile(
    r"([?&;#][\w-]*(?:token|key|secret|passw(?:or)?d|signature|sig|credential)=)[^\s&;#\"')>]+", re.IGNORECASE
)
_KEYS = re.compile(
    r"\b(?:sk|pk|rk)-[\w*-]*\w[\w*-]{7,}|\bhf_[A-Za-z0-9]{16,}|\bgh[a-z]_[A-Za-z0-9]{16,}|\bgithub_pat_\w{16,}"
    r"|\bglpat-[\w-]{16,}|\bAKIA[A-Z0-9]{12,}|\bAIza[\w-]{30,}"
)
_HEADERS = re.compile(
    r"(\bAuthorization[\"']?\s*[:=]\s*[\"']?(?:[A-Za-z]+\s+)?|\b[Bb]earer\s+)(?=[^\s\"',]{6})[^\s\"',]+"
)
_SECRET_NAME = re.compile(r"(?:^|_)(?:API_?KEY|ACCESS_KEY|SECRET(?:_KEY)?|TOKEN|PASSWORD|PASSWD)$", re.IGNORECASE)
_SHORTEST = 8  # letters of a secret: "none" and "EMPTY", for endpoints that ask for no key, are words


def _secrets() -> list[str]:
    """The values of the environment's credentials, and the passwords in its addresses; the longest first."""
    found: set[str] = set()
    for name, value in os.environ.items():
        if _SECRET_NAME.search(name):
            found.update((value.strip(), quote(value.strip(), safe="", errors="surrogateescape")))
        elif address := re.match(r"[A-Za-z][\w+.-]*://[^\s/@:\[]*:(\S+)@", value):  # of an endpoint or a proxy
            found.update((address[1], unquote(address[1])))
    return sorted((secret for secret in found if len(secret) >= _SHORTEST), key=len, reverse=True)


_LISTED = 40  # of the options in a message


def nearest(name: str, options: Iterable[str]) -> str:
    """Return ` Did you mean "x"?` for the option closest to `name`, or the list of options, to end a message with."""
    known = sorted(str(option) for option in options)
    close = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
    if close:
        return f' Did you mean "{close[0]}"?'
    more = f" and {len(known) - _LISTED} more" if len(known) > _LISTED else ""
    return f" Known: {', '.join(known[:_LISTED])}{more}." if known else ""
