"""Installed packages that bring records with them: an extra of pyproject.toml each, which nothing else needs."""

from __future__ import annotations

from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from bulwark.errors import RecordError


def installed(asked: str) -> Path:
    """The folder of an installed package. asked: its name and version, "agentdojo==0.1.35".

    Nothing of it is imported. Raises RecordError, with the command that helps, if it is not there in this version.
    """
    name, _, version = asked.partition("==")
    try:
        there = metadata.version(name)
    except metadata.PackageNotFoundError:
        raise RecordError(
            f"The package {name} is not installed. Type pip install -e '.[{name}]' in this repository, with this "
            "project's environment active, and give the same command again."
        ) from None
    if there != version:
        raise RecordError(
            f"The package {name} is installed in version {there}, and {asked} is asked for. Type pip install '{asked}'."
        )
    found = find_spec(name)
    if found is None or not found.submodule_search_locations:
        raise RecordError(
            f"The package {name} is installed and cannot be found. Install it again: pip install {asked}."
        )
    return Path(found.submodule_search_locations[0])
