"""The files of a configuration: config/config.yaml and the overlays over it, read by us and not by Snakemake.

Every configuration has a name, under which its tables, figures, claims and report are kept. The last file gives it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from typing import Any

from bulwark.errors import ConfigurationError, nearest
from bulwark.settings import merged, read_yaml

NAME = "name"
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
_NAME_LINE = re.compile(r"^name:[ \t]*[\"']?([A-Za-z0-9._-]+)", re.MULTILINE)
_OPTIONS = ("replace",)


@dataclass(frozen=True)
class File:
    """One file of a configuration; path: as messages show it."""

    path: str
    data: Mapping[str, Any]


@dataclass(frozen=True)
class Configuration:
    """Files laid over one another, the last on top; options: what `--config key=value` says."""

    files: tuple[File, ...]
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return str(self.files[-1].data.get(NAME, "unnamed"))

    @property
    def sections(self) -> dict[str, Any]:
        """All files merged, without the name."""
        whole: Mapping[str, Any] = reduce(merged, (file.data for file in self.files))
        return {key: value for key, value in whole.items() if key != NAME}


def read(paths: Sequence[str | Path], folder: Path, options: Mapping[str, Any] | None = None) -> Configuration:
    """Read config.yaml of `folder` and the overlays `paths`.

    Raises ConfigurationError for a file that cannot be read, an overlay without a name of its own, and an unknown
    option.
    """
    for option in options or ():
        if option not in _OPTIONS:
            raise ConfigurationError(
                f"--config {option}=…: there is no such option.{nearest(option, _OPTIONS)} Settings stand in a file "
                "(--configfile)."
            )
    files = [File(_shown(path), read_yaml(Path(path))) for path in (folder / "config.yaml", *paths)]
    _check_name(files[-1], [*paths, folder / "config.yaml"][len(paths) - 1], folder)
    return Configuration(tuple(files), dict(options or {}))


def _check_name(file: File, path: str | Path, folder: Path) -> None:
    """Whether the last file names the configuration, and by a name that is its own."""
    name = file.data.get(NAME)
    if name is None:
        stem = Path(path).stem
        raise ConfigurationError(
            f"{file.path}: the configuration has no name. Write `name: <name>` at the top of this file, such as "
            f"`name: {stem if _NAME.fullmatch(stem) else 'mine'}`: its tables, figures, claims and report are then "
            "kept in results/reports/<name>/."
        )
    check_name(name, f"{file.path}: name")
    for other in sorted(folder.glob("*.yaml")):
        said = _NAME_LINE.search(other.read_text(encoding="utf-8", errors="replace"))
        if said and said[1] == name and other.resolve() != Path(path).resolve():
            raise ConfigurationError(
                f'{file.path}: name: "{name}" is the name of {_shown(other)}. Give this configuration a name of its '
                "own, so that its tables, figures, claims and report do not replace those."
            )


def check_name(name: Any, where: str) -> None:
    """Raise ConfigurationError if `name` cannot be a part of a path and of a target."""
    if not isinstance(name, str):
        raise ConfigurationError(f"{where}: {name!r} is no text. Write it in quotes, if it is meant as a name.")
    if not _NAME.fullmatch(name):
        written = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip(".-")[:100] or "mine"
        raise ConfigurationError(
            f'{where}: "{name[:200]}" is no name: it becomes part of paths. Names are made of letters, digits, ".", '
            f'"_" and "-", begin with a letter, a digit or "_", and have at most 100 characters. Write {written}, say.'
        )


def _shown(path: str | Path) -> str:
    """A path as a person wrote it: relative, where it is below the folder one is in."""
    path = Path(path)
    return str(path.relative_to(Path.cwd()) if path.is_absolute() and path.is_relative_to(Path.cwd()) else path)
