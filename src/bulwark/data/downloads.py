"""Downloads: Hub repositories at a pinned commit, files at a web address with a known checksum.

The only part of the library that uses the network; it runs before anything that needs a GPU. What a result is based on
cannot change: branch names are refused, and so are files with another checksum.
"""

from __future__ import annotations

import hashlib
import http.client
import logging
import os
import re
import shutil
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath
from typing import Literal, TypeVar

import tenacity

from bulwark.errors import BulwarkError, without_credentials
from bulwark.files import sha256_of

log = logging.getLogger(__name__)

ATTEMPTS = 5
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SECONDS = tenacity.wait_exponential(multiplier=2, max=60)
_PASSING_STATUS = (408, 429, 500, 502, 503, 504)

Result = TypeVar("Result")


class DownloadError(BulwarkError):
    """Something cannot be downloaded; the message says what to do."""


def fetch(
    repository: str,
    revision: str | None,
    folder: str | Path,
    kind: Literal["dataset", "model"],
    files: Iterable[str] = (),
) -> Path:
    """Download a Hub repository at one commit into `folder` and return it; files that are there are not loaded again.

    revision: a commit, 40 hexadecimal digits. files: patterns of the files wanted, all if empty. Network faults are
    retried with growing pauses.
    Raises DownloadError for an unpinned revision, a repository that is gated, unknown or without that commit, and when
    the network cannot be reached.
    """
    from huggingface_hub import errors, snapshot_download

    page = f"https://huggingface.co/{'datasets/' if kind == 'dataset' else ''}{repository}"
    if revision is None or not _COMMIT.fullmatch(revision):
        raise DownloadError(
            f'The {kind} "{repository}" has the revision "{revision}", which is no commit: its content could change. '
            f"Write the 40 hexadecimal digits of a commit listed at {page}/commits/main."
        )
    patterns = list(files) or None

    def download() -> str:
        return snapshot_download(
            repository, repo_type=kind, revision=revision, local_dir=str(folder), allow_patterns=patterns
        )

    try:
        _persistently(download, f"{kind} {repository}")
    except errors.GatedRepoError as error:
        raise DownloadError(
            f'The {kind} "{repository}" is gated. Accept its licence at {page} with your account, make a token at '
            "https://huggingface.co/settings/tokens and set HF_TOKEN to it."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise DownloadError(
            f'The {kind} "{repository}" has no commit {revision}. Take one from {page}/commits/main.'
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise DownloadError(
            f'There is no {kind} "{repository}" on the Hub, or it is private. Check the name; for a private one set '
            "HF_TOKEN."
        ) from error
    except Exception as error:
        if not _is_passing(error):
            raise
        raise DownloadError(
            f'The {kind} "{repository}" could not be downloaded in {ATTEMPTS} attempts '
            f"({without_credentials(str(error))}). Run this where "
            f"huggingface.co can be reached (and HF_HUB_OFFLINE is not set), or copy the files to {folder}."
        ) from error
    if not any(Path(folder).iterdir()):
        raise DownloadError(f'The {kind} "{repository}" has no file that matches {patterns}. Correct the patterns.')
    return Path(folder)


def download(url: str, sha256: str | None, path: str | Path, git_blob: str | None = None) -> Path:
    """Download one file to `path`, which appears whole and checked or not at all; a .zip is also unpacked beside it.

    The content is checked by its SHA-256, or by its Git blob id (`git hash-object`) where only that is known.
    Raises DownloadError if no checksum is given, the content has another one, or the address cannot be reached.
    """
    path, shown = Path(path), without_credentials(url)
    if sha256 is None and git_blob is None:
        raise DownloadError(f"{shown} has no sha256, so its content could change. Give the file's SHA-256.")
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")

    def load() -> None:
        with urllib.request.urlopen(url, timeout=60) as answer, part.open("wb") as file:
            shutil.copyfileobj(answer, file)
            announced = answer.headers.get("Content-Length")
        if announced is not None and part.stat().st_size != int(announced):
            raise ConnectionError(f"the connection was lost after {part.stat().st_size} of {announced} bytes")

    try:
        _persistently(load, shown)
        for kind, checksum, wanted in (("SHA-256", sha256_of, sha256), ("Git name", _git_blob_of, git_blob)):
            found = checksum(part)
            if wanted is not None and found != wanted.lower():
                raise DownloadError(
                    f"{shown} has the {kind} {found}, not {wanted}: the file was changed or the download was altered. "
                    "Check it before you write the new sum into the configuration."
                )
        if path.suffix.lower() == ".zip":
            shutil.unpack_archive(part, path.parent, "zip")
        os.replace(part, path)
    except (OSError, http.client.HTTPException) as error:
        if not isinstance(error, urllib.error.URLError) and not _is_passing(error):
            raise  # of the disk
        raise DownloadError(
            f"{shown} could not be downloaded ({without_credentials(str(error))}). Check the address and the network, "
            "then give the same command again."
        ) from error
    finally:
        part.unlink(missing_ok=True)
    return path


def name_of(url: str) -> str:
    """The name of the file at an address: the last part of its path, as it is read; a query may hold a token.

    Raises DownloadError where the address has no such part.
    """
    name = PurePosixPath(urllib.parse.unquote(urllib.parse.urlsplit(url).path)).name
    if not name or name == ".." or "\0" in name:
        raise DownloadError(f"{without_credentials(url)} names no file. Give the address of one file.")
    return name


def _git_blob_of(path: Path) -> str:
    """SHA-1 of "blob <bytes>\\0" and the file's content."""
    return hashlib.sha1(b"blob %d\0" % path.stat().st_size + path.read_bytes()).hexdigest()


def _persistently(action: Callable[[], Result], what: str) -> Result:
    """Run `action`, again after a pause when the network fails; the last failure is raised unchanged."""

    def warn(state: tenacity.RetryCallState) -> None:
        error = without_credentials(str(state.outcome and state.outcome.exception()))
        log.warning("%s, attempt %d: %s", what, state.attempt_number, error)

    stop = tenacity.stop_after_attempt(ATTEMPTS)
    passing = tenacity.retry_if_exception(_is_passing)
    return tenacity.Retrying(retry=passing, stop=stop, wait=_SECONDS, before_sleep=warn, reraise=True)(action)


def _is_passing(error: BaseException) -> bool:
    """Whether the fault may go away by itself: no connection, time-out, an overloaded server."""
    status = getattr(getattr(error, "response", None), "status_code", getattr(error, "code", None))
    if status is not None:
        return status in _PASSING_STATUS
    # The Hub's client raises errors of its HTTP library (httpx, as OSError or not), or says that a file is
    # neither reachable nor cached.
    names = {base.__name__ for base in type(error).__mro__}
    passing = (ConnectionError, TimeoutError, urllib.error.URLError, http.client.HTTPException)
    return isinstance(error, passing) or bool(names & {"TransportError", "LocalEntryNotFoundError"})
