"""The files of a configuration: config/config.yaml and the overlays over it, read by us and not by Snakemake.

Every configuration has a name, under which its tables, figures, claims and report are kept. The last file gives it.

What is laid over what is kept as a list of parts, the topmost last, so that every message can say in which line of
which file a setting stands. A part beats all parts below it; within a part, what it says of one model (`models:
{<model>: …}`) beats what it says of all.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal

from bulwark.config.costs.accelerators import ACCELERATORS, DEFAULT
from bulwark.errors import ConfigurationError, nearest
from bulwark.settings import Document, Mark, find, merged, parsed, read_document
from bulwark.training import progress

NAME, RUN, ACCELERATOR = "name", "run", "accelerator"
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
_NAME_WITHOUT_DOTS = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,99}")
_OF_TRIAL = re.compile(r"\.([0-9]+|best)$")
_NAME_LINE = re.compile(r"^name:[ \t]*[\"']?([A-Za-z0-9._-]+)", re.MULTILINE)
# What a step, benchmark or projection says for one model, too.
_OF_MODELS = ("settings", "dataset", "split", "cost", "space")
_LIKE = 20
# Sections by their names: folders, or the ends of targets; and those whose files have endings after the name.
_WITH_DOTS = ("models", "datasets", "steps", "studies")
_WITHOUT_DOTS = ("benchmarks", "analyses", "traits", "projections", "tables", "figures", "claims")
_OPTIONS = ("replace", "partial", "tracker")


@dataclass(frozen=True)
class Part:
    """A map in a file. file: as messages show it. keys: that lead to the map in the file, one after the other.

    layer: 0 for a file of an entity, 1 for config.yaml, 2 for the first overlay, and so on. turn: of an entity's own
    parts among those of what it is like, which come first.
    """

    file: str
    data: Any
    mark: Mark | None = None
    keys: tuple[str, ...] = ()
    layer: int = 0
    turn: int = 0

    def below(self, *keys: str) -> Part | None:
        """The part under a path of keys, if the file has it."""
        data, mark = self.data, self.mark
        for key in keys:
            if not isinstance(data, Mapping) or key not in data:
                return None
            data, mark = data[key], mark and mark.below.get(key)
        return replace(self, data=data, mark=mark or None, keys=(*self.keys, *keys))

    def reach(self, keys: Sequence[str | int]) -> tuple[int, str]:
        """How many of the keys, one inside the other, the part has, and "file:line" of the last of them."""
        data, mark, depth = self.data, self.mark, 0
        for key in keys:
            inside = key in data if isinstance(data, Mapping) else isinstance(data, list) and key in range(len(data))
            if not inside:
                break
            data, mark, depth = data[key], (mark and mark.below.get(key)) or mark, depth + 1
        return depth, f"{self.file}:{mark.line}" if mark else self.file

    def hides(self, keys: Sequence[str | int]) -> bool:
        """Whether what lower parts say of the keys does not count: a list or a value stands in its place."""
        data = self.data
        for key in keys:
            if not isinstance(data, Mapping) or key not in data:
                return False
            data = data[key]
            if not isinstance(data, Mapping):
                return True
        return False


@dataclass(frozen=True)
class Origin:
    """Where a map of settings was written: the parts that it was laid together from, the topmost last."""

    parts: tuple[Part, ...]

    def __call__(self, keys: Sequence[str | int] = ()) -> str:
        """ "file:line" of the topmost part that says something of `keys`, and the path of the map in that file."""
        part, place = self._saying(keys)
        return ", ".join(filter(None, (place, ".".join(part.keys))))

    def at(self, *keys: str | int) -> str:
        """ "file:line" of a key, and its path in that file."""
        part, place = self._saying(keys)
        return ", ".join(filter(None, (place, ".".join(map(str, (*part.keys, *keys))))))

    def _saying(self, keys: Sequence[str | int]) -> tuple[Part, str]:
        top = next((n for n in reversed(range(len(self.parts))) if self.parts[n].hides(keys)), 0)
        best = max(reversed(self.parts[top:]), key=lambda part: part.reach(keys)[0])  # of equals, max takes the first
        return best, best.reach(keys)[1]

    def below(self, *keys: str) -> Origin:
        """The origin of a map inside this one."""
        parts = [found for part in self.parts if (found := part.below(*keys))]
        top = self.parts[-1]
        return Origin(tuple(parts) or (Part(top.file, {}, top.mark and Mark(top.mark.line), (*top.keys, *keys)),))

    def settings(self, model: str | None, key: Literal["settings", "space"] = "settings") -> Origin:
        """The origin of an entity's settings as they are on `model`, or on a model that it does not mention (None)."""
        parts = [*self.parts, *(on_model(self.parts, model) if model is not None else ())]
        found = tuple(below for part in parts if (below := part.below(key)))
        return Origin(found) if found else self.below(key)


def whole(parts: Sequence[Part]) -> Any:
    """What parts say together."""
    return reduce(lambda below, part: _over(below, part.data), parts, {})


def on_models(parts: Sequence[Part]) -> dict[str, Any]:
    """What parts of an entity say together of each model that one of them mentions, beside what they say of all."""
    models = {model: None for part in parts for model in _keys(part.data.get("models"))}
    return {model: whole(on_model(parts, model)) for model in models}


def on_model(parts: Sequence[Part], model: str) -> list[Part]:
    """What parts of an entity say of one model, without the keys that an overlay over them sets for all models."""
    special = []
    for part in parts:
        if said := part.below("models", model):
            above = [over.data for over in parts if over.layer > part.layer and over.turn >= part.turn]
            general = [{key: over[key] for key in _OF_MODELS if key in over} for over in above]
            data = reduce(_without, general, said.data)
            special.append(replace(said, data=data))
    return special


def _keys(data: Any) -> list[Any]:
    return list(data) if isinstance(data, Mapping) else []


def _without(data: Any, over: Any) -> Any:
    """What is left of `data` when all that `over` sets is taken out."""
    if not isinstance(data, Mapping) or not isinstance(over, Mapping):
        return data
    kept = {key: value for key, value in data.items() if key not in over}
    inside = [key for key in data if isinstance(data[key], Mapping) and isinstance(over.get(key), Mapping)]
    return kept | {key: _without(data[key], over[key]) for key in inside}


def _over(below: Any, over: Any) -> Any:
    return merged(below, over) if isinstance(below, Mapping) and isinstance(over, Mapping) else over


def like(name: str, parts: Mapping[str, Sequence[Part]], kind: str) -> list[str]:
    """What an entity is like, what that is like, and so on: the first stands for itself, the last is `name`.

    Raises ConfigurationError for a name that is not among `parts`, or a circle.
    """
    chain = [name]
    while (said := _like(parts[chain[0]])) is not None:
        other, where = said
        if not isinstance(other, str):
            raise ConfigurationError(f"{where}: {json.dumps(other)[:100]} is no name. Write one of the {kind}.")
        if other not in parts:
            raise ConfigurationError(f'{where}: there is no "{other}".{nearest(other, parts)}')
        if other in chain:
            circle = " is like ".join([*reversed(chain), other])
            raise ConfigurationError(f"{where}: {circle}; one of them has to stand for itself.")
        if len(chain) == _LIKE:
            raise ConfigurationError(f"{where}: it is like more than {_LIKE} entities, one like the other.")
        chain.insert(0, other)
    return chain


def _like(parts: Sequence[Part]) -> tuple[Any, str] | None:
    """What the topmost part that has the key `like` says, and where."""
    for part in reversed(parts):
        if isinstance(part.data, Mapping) and part.data.get("like") is not None:
            return part.data["like"], Origin((part,)).at("like")
    return None


@dataclass(frozen=True)
class Configuration:
    """Files laid over one another, the last on top; options: what `--config key=value` says."""

    files: tuple[Part, ...]
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return str(self.files[-1].data.get(NAME, "unnamed"))

    @property
    def command(self) -> str:
        """How Snakemake is called to make a file of this configuration, up to the file's path."""
        laid = "".join(f" {part.file}" for part in self.files[1:])
        return f"snakemake{' --configfile' if laid else ''}{laid} -c2 --"

    def chosen(self, studies: Sequence[str]) -> list[str]:
        """The studies that the topmost `run` lists; without one, all.

        Raises ConfigurationError if it is no list, names an unknown study, or none.
        """
        listing = next((part for file in reversed(self.files) if (part := file.below(RUN))), None)
        if listing is None:
            return list(studies)
        origin = Origin((listing,))
        if not isinstance(listing.data, list) or not listing.data:
            raise ConfigurationError(f"{origin.at()}: expected a list of studies, such as [{next(iter(studies), '')}].")
        for number, name in enumerate(listing.data):
            find(dict.fromkeys(studies), str(name), "study", origin.at(number))
        return [name for name in studies if name in listing.data]

    def accelerator(self) -> str:
        """The kind of GPU that the topmost `accelerator` names, by which times are guessed.

        Raises ConfigurationError for an unknown one.
        """
        file = next((file for file in reversed(self.files) if ACCELERATOR in file.data), None)
        if file is None:
            return DEFAULT
        given = str(file.data[ACCELERATOR])
        find(ACCELERATORS, given, "accelerator", Origin((file,)).at(ACCELERATOR))
        return given

    def section(self, section: str) -> dict[str, list[Part]]:
        """What the files say of each name of a section, the last file last.

        Raises ConfigurationError for a section, or something in it, that is no map.
        """
        said: dict[str, list[Part]] = {}
        for layer, file in enumerate(self.files, start=1):
            below = file.below(section)
            if below is None or below.data is None:
                continue
            for name in _map(below):
                part = below.below(name)
                assert part is not None
                _map(part)
                said.setdefault(name, []).append(replace(part, layer=layer))
        return said


def _map(part: Part) -> Mapping[str, Any]:
    if not isinstance(part.data, Mapping):
        found = f'{type(part.data).__name__} "{str(part.data)[:100]}"'
        raise ConfigurationError(f"{Origin((part,)).at()}: expected a map of names, found {found}.")
    return part.data


def read(paths: Sequence[str | Path], folder: Path, options: Mapping[str, Any] | None = None) -> Configuration:
    """Read config.yaml of `folder` and the overlays `paths`.

    Raises ConfigurationError for a file that cannot be read, an overlay without a name of its own, and an option that
    is unknown or has a value that it cannot have.
    """
    for option in options or ():
        if option not in _OPTIONS:
            raise ConfigurationError(
                f"--config {option}=…: there is no such option.{nearest(option, _OPTIONS)} Settings stand in a file "
                "(--configfile)."
            )
    replace_finished(options or {})
    shows_partly(options or {})
    tracker(options or {})
    files = [_part(_shown(path), _document(Path(path))) for path in (folder / "config.yaml", *paths)]
    for file in files:
        for section in {*_WITH_DOTS, *_WITHOUT_DOTS} & set(file.data):
            for name in _keys(file.data[section]):
                check_name(name, Origin((file,)).at(section, name), dots=section in _WITH_DOTS)
    _check_name(files[-1], [*paths, folder / "config.yaml"][len(paths) - 1], folder)
    return Configuration(tuple(files), dict(options or {}))


def replace_finished(options: Mapping[str, Any]) -> bool:
    """The option `replace`: whether finished results that needed GPUs may be made again.

    Raises ConfigurationError if it is neither true nor false.
    """
    return _switch(options, "replace")


def shows_partly(options: Mapping[str, Any]) -> bool:
    """The option `partial`: whether tables show what has not been made as missing, in the place of making it.

    Raises ConfigurationError if it is neither true nor false.
    """
    return _switch(options, "partial")


def tracker(options: Mapping[str, Any]) -> str:
    """The option `tracker`: the package that gets the losses of trainings, "none" for none.

    Raises ConfigurationError for an unknown one and for a package that is not installed.
    """
    name = str(options.get("tracker", "none"))
    progress.tracker_named(name)
    return name


def _switch(options: Mapping[str, Any], option: str) -> bool:
    given = options.get(option, False)
    chosen = {"true": True, "false": False}.get(str(given).lower())
    if chosen is None:
        raise ConfigurationError(f"--config {option}={given}: write {option}=true or {option}=false.")
    return chosen


def check_arguments(arguments: Sequence[str]) -> None:
    """Whether the files after --configfile on a command line of Snakemake's are there and readable.

    Snakemake reads them before it reads a Snakefile, and takes every word up to the next option for one of them, also
    targets. Raises ConfigurationError that says so.
    """
    files: list[str] = []
    reading = False
    for position, word in enumerate(arguments):
        if word == "--":
            break
        option, _, value = word.partition("=")
        if word.startswith("-"):
            reading = option in ("--configfile", "--configfiles")
            word = value
        if not reading or not word:
            continue
        target = not Path(word).is_file() or Path(word).parts[0] == "results"
        if target and files and Path(word).suffix not in (".yaml", ".yml"):
            targets = list(takewhile(lambda later: not later.startswith("-"), arguments[position:]))
            command = " ".join(["--configfile", *files, "--", *targets])
            raise ConfigurationError(
                f'"{word}" is read as a configuration: --configfile takes every word up to the next option. Write -- '
                f"before the targets, and other options before that: {command}"
            )
        files.append(word)
        _document(Path(word))


def ends_on_a_mistake() -> None:
    """End this process with a message if `check_arguments` refuses its command line."""
    try:
        check_arguments(sys.argv[1:])
    except ConfigurationError as error:
        print(f"bulwark: {error}", file=sys.stderr)
        raise SystemExit(1) from None


def counts_jobs_only(arguments: Sequence[str] | None = None) -> bool:
    """Whether a command line of Snakemake's is a dry run that does not ask for its jobs in full, by -p or --quiet."""
    given = list(takewhile(lambda word: word != "--", sys.argv[1:] if arguments is None else arguments))
    letters = "".join(word[1:] for word in given if re.fullmatch(r"-[a-zA-Z]+", word))
    dry = "n" in letters or {"--dry-run", "--dryrun"} & set(given)
    in_full = "p" in letters or {"--printshellcmds", "--verbose"} & set(given)
    return bool(dry) and not in_full


def _document(path: Path) -> Document:
    """A file of a configuration. Raises ConfigurationError, with what is nearest, if it is not there."""
    if not path.exists():
        folder = path.parent if path.parent.is_dir() else Path()
        names = [entry.name for entry in folder.iterdir() if entry.suffix in (".yaml", ".yml", ".json")]
        raise ConfigurationError(f'There is no file "{path}".{nearest(path.name, names[:1000])}')
    return read_document(path)


def plain(data: Mapping[str, Any]) -> Configuration:
    """The configuration of a map that comes from no file."""
    return Configuration((Part("the configuration", data),))


def text(written: str, file: str = "overlay.yaml") -> Part:
    """The part that a text in YAML is."""
    return _part(file, parsed(written, file))


def _part(file: str, document: Document) -> Part:
    return Part(file, document.data, document.mark)


def _check_name(file: Part, path: str | Path, folder: Path) -> None:
    """Whether the last file names the configuration, and by a name that is its own."""
    name = file.data.get(NAME)
    if name is None:
        stem = Path(path).stem
        raise ConfigurationError(
            f"{file.file}: the configuration has no name. Write `name: <name>` at the top of this file, such as "
            f"`name: {stem if _NAME.fullmatch(stem) else 'mine'}`: its tables, figures, claims and report are then "
            "kept in results/reports/<name>/."
        )
    place = Origin((file,)).at(NAME)
    check_name(name, place)
    for other in sorted(folder.glob("*.yaml")):
        said = _NAME_LINE.search(other.read_text(encoding="utf-8", errors="replace"))
        if said and said[1] == name and other.resolve() != Path(path).resolve():
            raise ConfigurationError(
                f'{place}: "{name}" is the name of {_shown(other)}. Give this configuration a name of its '
                "own, so that its tables, figures, claims and report do not replace those."
            )


def check_names(section: str, parts: Mapping[str, Sequence[Part]]) -> None:
    """Raise ConfigurationError for a name of a section that cannot be one."""
    for name, said in parts.items():
        where = Origin(tuple(said)).at()
        check_name(name, where, dots=section in _WITH_DOTS)
        if section == "steps" and (matched := _OF_TRIAL.search(name)):
            raise ConfigurationError(
                f'{where}: "{name}" cannot be the name of a step: "{matched[0]}" at its end is how the trial '
                f'{matched[1]} of a step is called. Write "{name[: matched.start()]}_{matched[1]}", say.'
            )


def check_name(name: Any, where: str, dots: bool = True) -> None:
    """Raise ConfigurationError if `name` cannot be a part of a path and of a target.

    dots: whether the name can hold dots, which those cannot whose files have endings after the name.
    """
    if not isinstance(name, str):
        raise ConfigurationError(f"{where}: {json.dumps(name)[:100]} is no text. Write a name, in quotes if need be.")
    if not (_NAME if dots else _NAME_WITHOUT_DOTS).fullmatch(name):
        others = "[^A-Za-z0-9._-]+" if dots else "[^A-Za-z0-9_-]+"
        written = re.sub(others, "-", name).strip(".-")[:100].strip(".-") or "mine"
        signs = '".", "_" and "-"' if dots else '"_" and "-"'
        raise ConfigurationError(
            f'{where}: "{name[:200]}" cannot be a name: it becomes part of paths. Names are made of letters, digits, '
            f'{signs}, begin with a letter, a digit or "_", and have at most 100 characters. Write "{written}", say.'
        )


def _shown(path: str | Path) -> str:
    """A path as a person wrote it: relative, where it is below the folder one is in."""
    path = Path(path)
    return str(path.relative_to(Path.cwd()) if path.is_absolute() and path.is_relative_to(Path.cwd()) else path)
