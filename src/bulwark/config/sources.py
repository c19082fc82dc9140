"""Whether what a plan reads from outside is there: the user's models, data files and published vectors.

Looked at when the plan comes upon them, so before any job, also where the results that need them exist already. Of
data only the first records are read. Every function raises ConfigurationError with the line of the configuration in
which the path stands, the path as it stands there, and what is nearest to it.
"""

from __future__ import annotations

import json
import os
import pkgutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pydantic

from bulwark import benchmarks
from bulwark.config import checks
from bulwark.config.catalogue import Catalogue
from bulwark.config.entities import Dataset
from bulwark.data import contrasts, foreign, packages, readers
from bulwark.data.records import SCHEMAS
from bulwark.errors import BulwarkError, CheckpointError, ConfigurationError, RecordError, nearest
from bulwark.models.folders.weights import weights_of
from bulwark.prompts.templates import TEMPLATES

FIRST = 3  # records of a file that are looked at
_BEGINNING = 1 << 20  # bytes of a file in which they are looked for
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "tokenizer_config.json")
_POINTER = b"version https://git-lfs"

# Run apart, because importing pyarrow would hold up every plan: the first rows as JSON Lines.
_ARROW = """
import json, sys
import pyarrow
path, count = sys.argv[1], int(sys.argv[2])
if path.endswith(".parquet"):
    from pyarrow import parquet
    batches = parquet.ParquetFile(path).iter_batches(batch_size=count)
else:
    batches = pyarrow.ipc.open_stream(pyarrow.memory_map(path))
for row in next(iter(batches)).slice(0, count).to_pylist():
    print(json.dumps(row, default=str))
"""


def check(catalogue: Catalogue) -> None:
    """Check the sources of everything that the studies use."""
    used = checks.in_use(catalogue)
    for model in sorted(used.models):
        check_model(catalogue, model)
    for dataset in sorted(used.datasets):
        check_dataset(catalogue, dataset)
    for model, trait in sorted(used.traits):
        if model in catalogue.traits[trait].files:
            check_vectors(catalogue, model, trait)


@cache
def check_model(catalogue: Catalogue, model: str) -> None:
    """Whether a model of the user's is a folder with configuration, tokenizer and one set of whole weights."""
    given = catalogue.model(model).source.path
    if given is None:
        return
    where = catalogue.where("models", model, "source", "path")
    folder = _there(given, where)
    if not folder.is_dir():
        raise ConfigurationError(f'{where}: "{given}" is a file. A model is a Hugging Face folder.')
    config = folder / "config.json"
    if not config.is_file():
        adapter = (folder / "adapter_config.json").is_file()
        what = "it holds an adapter alone; merge it into its model first" if adapter else "so it is no model folder"
        raise ConfigurationError(f'{where}: "{given}" has no config.json: {what}.')
    try:
        content = json.loads(_readable(config, where).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigurationError(
            f"{where}: {config} is not readable as JSON ({error}). Save the model again."
        ) from None
    if not isinstance(content, dict) or "model_type" not in content:
        raise ConfigurationError(f'{where}: {config} names no "model_type". Save the model again.')
    if not any((folder / name).is_file() for name in _TOKENIZERS):
        raise ConfigurationError(
            f'{where}: "{given}" has no tokenizer. Save it there with tokenizer.save_pretrained("{given}").'
        )
    template = TEMPLATES[catalogue.model(model).template]
    if template.system_message is None and template.chat is None and not _has_chat_template(folder):
        raise ConfigurationError(
            f'{catalogue.where("models", model, "template")}: the tokenizer in "{given}" has no chat template. Write '
            "`template: alpaca` for a base model, or save a chat template with the tokenizer."
        )
    for file in _weights(folder, given, where):
        _check_weights(file, where)
    try:
        weights_of(folder, compare=False)  # two formats are compared when the folder is adopted
    except CheckpointError as error:
        raise ConfigurationError(f"{where}: {error}") from None


def _has_chat_template(folder: Path) -> bool:
    if any((folder / name).is_file() for name in ("chat_template.jinja", "chat_template.json")):
        return True
    try:
        return bool(json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8")).get("chat_template"))
    except (OSError, ValueError, AttributeError):
        return False


def _weights(folder: Path, given: str, where: str) -> list[Path]:
    for index in sorted(folder.glob("*.index.json")):
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise ConfigurationError(f"{where}: {index} is no index of weights ({error!r}). Copy it again.") from None
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise ConfigurationError(
                f"{where}: {len(missing)} of the {len(names)} files of weights that {index} names are missing, "
                f"{missing[0]} first. Copy the whole folder."
            )
        return [folder / name for name in names]
    files = sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")])
    if not files:
        raise ConfigurationError(f'{where}: "{given}" has no weights (*.safetensors). Copy the whole folder.')
    return files


def _check_weights(file: Path, where: str) -> None:
    """Whether a file of weights is no placeholder and, as far as its header tells, whole."""
    size = _readable(file, where).stat().st_size
    with file.open("rb") as stream:
        start = stream.read(len(_POINTER))
        if start == _POINTER:
            raise ConfigurationError(f"{where}: {file} is a placeholder of git-lfs. Fetch the file: git lfs pull.")
        if file.suffix != ".safetensors":
            return
        stream.seek(0)
        length = int.from_bytes(stream.read(8), "little")
        try:
            header = json.loads(stream.read(length)) if 0 < length < size else None
            data = max(part["data_offsets"][1] for name, part in header.items() if name != "__metadata__")
        except (ValueError, AttributeError, TypeError, KeyError):
            raise ConfigurationError(f"{where}: {file} is no file of weights. Copy it again.") from None
    if 8 + length + data != size:
        raise ConfigurationError(f"{where}: {file} has {size} bytes instead of {8 + length + data}. Copy it again.")


@cache
def check_vectors(catalogue: Catalogue, model: str, trait: str) -> None:
    """Whether the published file of a trait's vectors on a model is there."""
    where = catalogue.where("traits", trait, "files", model)
    given = catalogue.trait(trait).files[model]
    if not _there(given, where).is_file():
        raise ConfigurationError(f'{where}: "{given}" is a folder. Name a file of vectors.')


@cache
def check_dataset(catalogue: Catalogue, name: str) -> None:
    """Whether a data set of the user's can be read, as far as its first records tell, and a package is installed."""
    dataset = catalogue.dataset(name)
    for part in dataset.source.mixture or ():
        check_dataset(catalogue, part)
    origin = catalogue.origins["datasets", name]
    if dataset.source.package is not None:
        _check_package(dataset.source.package, origin.at("source", "package"))
    source = dataset.source.path
    if source is None:
        return
    if isinstance(source, dict):
        for split, wanted in dataset.splits.items():
            key = wanted if isinstance(wanted, str) else split
            if key not in source:
                place = origin.at("splits", split)
                raise ConfigurationError(f'{place}: source.path names no file for "{key}".{nearest(key, source)}')
        for key, path in source.items():
            _check_records(dataset, path, None, origin.at("source", "path", key))
        return
    where = origin.at("source", "path")
    if dataset.format in foreign.FOREIGN:
        _check_foreign(dataset, source, where)
        return
    for part in dataset.parts:
        _there(source, where)
        _check_records(dataset, f"{source}/{part}", None, origin.at("parts", part))
    if not dataset.parts:
        wanted = {split if isinstance(split, str) else None for split in dataset.splits.values()}
        for split in sorted(wanted, key=str):
            _check_records(dataset, source, split, where)


def _check_package(asked: str, where: str) -> None:
    """Whether the package that brings the records is installed; it is not imported."""
    try:
        packages.installed(asked)
    except RecordError as error:
        raise ConfigurationError(f"{where}: {error}") from None


def _check_records(dataset: Dataset, given: str, split: str | None, where: str) -> None:
    """Whether the first records of a file or folder are of the data set's kind, in its format."""
    path = _there(given, where)
    with tempfile.TemporaryDirectory() as scratch:
        start: Any = path
        try:
            if dataset.format == "artefact":
                start = contrasts.unpacked(path, dataset.kind, Path(scratch))
            else:
                start = _beginning(path, split, Path(scratch), where)
            if start is None:
                return
            options = dataset.model_dump(include=readers.OPTIONS) if dataset.format != "artefact" else {}
            readers.read_source(start, schema_of(dataset.kind), most=FIRST, **options)
        except RecordError as error:
            told = str(error).replace(str(start), given) + other_kind(dataset, start)
            raise ConfigurationError(f"{where}: {told}") from None


def _check_foreign(dataset: Dataset, given: str, where: str) -> None:
    """Whether the first records in a format of another project are of the data set's kind; it is read as a whole."""
    path = _there(given, where)
    with tempfile.TemporaryDirectory() as scratch:
        try:
            start = foreign.unpacked(dataset.format, path, dataset.parts, Path(scratch))
            readers.read_source(start, schema_of(dataset.kind), most=FIRST)
        except RecordError as error:
            told = str(error).replace(str(Path(scratch, f"{dataset.format}.jsonl")), given)
            raise ConfigurationError(f"{where}: {told}") from None


def schema_of(kind: str) -> type[pydantic.BaseModel]:
    """The schema of a kind of records. Raises ConfigurationError for a kind that there is not."""
    known: dict[str, Any] = {**SCHEMAS, contrasts.KIND: contrasts.Contrast}
    return known[kind] if kind in known else benchmarks.module_of(kind).Record


@contextmanager
def told_of_other_kinds(dataset: Dataset, source: Any, split: str) -> Iterator[None]:
    """A RecordError of reading a split of `dataset` also says which kind its records are of, if another is."""
    try:
        yield
    except RecordError as error:
        wanted = dataset.splits[split]
        raise RecordError(
            f"{error}{other_kind(dataset, source, wanted if isinstance(wanted, str) else None)}"
        ) from None


def other_kind(dataset: Dataset, source: Any, split: str | None = None) -> str:
    """The end of a message about records that do not fit: of which kind the first of them is; "" if nobody can tell.

    source: a file or folder, or {split: file}. A kind fits a row that has all fields which the kind requires, with
    values of their types. Kinds that have no use for some of the columns come after the others; of each, those that
    require most come first.
    """
    from bulwark.data import sources

    if dataset.format == "artefact" or dataset.format in foreign.FOREIGN:
        return ""
    try:
        path = next(iter(source.values())) if isinstance(source, Mapping) else source
        path = Path(path, next(iter(dataset.parts))) if dataset.parts and Path(path).is_dir() else Path(path)
        row = next(row for _, row in sources.rows(path, split))
    except (BulwarkError, OSError, StopIteration):
        return ""
    fitting = _fitting(row) if isinstance(row, dict) else {}
    if not fitting or (dataset.kind, dataset.format) in fitting:
        return ""
    best = [named for named, rank in fitting.items() if rank == max(fitting.values())]
    kinds, format = list(dict.fromkeys(kind for kind, _ in best)), best[0][1]
    said = [" or ".join(f"`kind: {kind}`" for kind in kinds)] if dataset.kind not in kinds else []
    said += [f"`format: {format}`"] if dataset.format != format else []
    return f" These records look like {' or '.join(kinds)}: say {' and '.join(said)}."


def _fitting(row: dict[str, Any]) -> dict[tuple[str, str], tuple[bool, int]]:
    """{(kind, format) that a row may be of: (whether all its columns are read, how many of them it has to have)}."""
    fitting: dict[tuple[str, str], tuple[bool, int]] = {}
    for name in ("messages", "conversations", "conversation"):
        if isinstance(row.get(name), list):
            fitting["conversation", "messages"] = (True, 1)
    if all(isinstance(row.get(name), str) for name in ("instruction", "input", "output")):
        fitting["conversation", "alpaca"] = (set(row) <= {"id", "instruction", "input", "output"}, 3)
    names = [*SCHEMAS, contrasts.KIND, *sorted(module.name for module in pkgutil.iter_modules(benchmarks.__path__))]
    schemas: dict[type[pydantic.BaseModel], str] = {}
    for name in names:
        schema = schema_of(name)
        if schema not in schemas or schema.__module__ == f"{benchmarks.__name__}.{name}":
            schemas[schema] = name  # of several benchmarks over the same records, the one that they are defined in
    for schema, kind in schemas.items():
        required = {name for name, field in schema.model_fields.items() if field.is_required() and name != "id"}
        whole = set(row) <= set(schema.model_fields)
        if required <= set(row) and (whole or len(required) > 1):
            known = {name: row[name] for name in schema.model_fields if name in row}
            try:
                # As the cells of a CSV file are read: "3" may be a number.
                schema.model_validate_json(json.dumps({**known, "id": str(row.get("id", 0))}), strict=False)
            except (ValueError, TypeError):
                continue
            fitting[kind, "native"] = (whole, len(required))
    return fitting


def _beginning(path: Path, split: str | None, scratch: Path, where: str) -> Path | None:
    """A file with the first records of a data file or folder; None where only its reader can find them."""
    if path.is_dir():
        from bulwark.data import sources

        split = split and split.partition(sources.JOINED)[0]
        if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
            return _first_saved(path, split, scratch, where)
        if sources.describes_its_splits(path):
            return None
        path = sources.files_of_split(path, split, None)[0]
    _readable(path, where)
    with path.open("rb") as file:
        start = file.read(_BEGINNING)
        rest = file.read(1)
    if start.startswith(_POINTER):
        raise ConfigurationError(f"{where}: {path} is a placeholder of git-lfs. Fetch the file: git lfs pull.")
    ending = path.suffix.lower()
    if ending == ".parquet":
        return _first_of_arrow(path, scratch, where)
    if not rest or ending not in (".json", ".csv", ".tsv"):  # lines of JSON are read one by one in any case
        return path
    beginning = scratch / path.name
    if ending == ".json" and start.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"["):
        rows = _first_of_list(start.decode("utf-8", errors="ignore"))
        if not rows:
            return None  # a record that is longer than what was read
        beginning.write_text(json.dumps(rows), encoding="utf-8")
    else:
        beginning.write_bytes(start[: start.rfind(b"\n") + 1])
    return beginning


def _first_of_list(text: str) -> list[Any]:
    """The first values of a JSON list whose end is not there."""
    decoder, rows = json.JSONDecoder(), []
    at = text.index("[") + 1
    try:
        while len(rows) < FIRST:
            at += len(text[at:]) - len(text[at:].lstrip(" \t\r\n,"))
            row, at = decoder.raw_decode(text, at)
            rows.append(row)
    except (ValueError, RecursionError):  # the reader says what is wrong
        pass
    return rows


def _first_saved(folder: Path, split: str | None, scratch: Path, where: str) -> Path | None:
    """Of a folder written by `save_to_disk`."""
    try:
        splits = json.loads((folder / "dataset_dict.json").read_text())["splits"] if split else None
        if splits is not None and split not in splits:
            raise ConfigurationError(f'{where}: {folder} has no split "{split}".{nearest(str(split), splits)}')
        part = folder / str(split) if split else folder
        part = part if (part / "state.json").is_file() else next(iter(sorted(folder.glob("*/state.json")))).parent
        files = [part / entry["filename"] for entry in json.loads((part / "state.json").read_text())["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError, StopIteration) as error:
        raise ConfigurationError(f"{where}: {folder} is no whole saved data set ({error!r}). Save it again.") from None
    for file in files:
        if not file.is_file():
            raise ConfigurationError(f"{where}: {file}, a part of the saved data set, is missing. Save it again.")
    return _first_of_arrow(files[0], scratch, where) if files else None


def _first_of_arrow(path: Path, scratch: Path, where: str) -> Path:
    """Of a file in Parquet or Arrow."""
    with path.open("rb") as file:
        if path.suffix.lower() == ".parquet" and file.read(4) != b"PAR1":
            raise ConfigurationError(f"{where}: {path} is not readable as Parquet. Make the file again.")
    command = [sys.executable, "-c", _ARROW, str(path), str(FIRST)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise ConfigurationError(f"{where}: {path} is not readable ({reason[:300]}). Make the file again.")
    beginning = scratch / f"{path.stem}.jsonl"
    beginning.write_text(done.stdout, encoding="utf-8")
    return beginning


def file_there(given: str, where: str) -> str:
    """The path of a file of the user's as it stands, if it is there and is no folder."""
    if not _there(given, where).is_file():
        raise ConfigurationError(f'{where}: "{given}" is a folder. Name a file.')
    return given


def _there(given: str, where: str) -> Path:
    """The path of the user's. Raises ConfigurationError, with what is nearest to it, if it is not there."""
    path = Path(given)
    try:
        there = path.exists()
    except (OSError, ValueError) as error:
        raise ConfigurationError(f'{where}: "{given[:200]}" cannot be a path ({error}).') from None
    if there:
        if not path.is_file() and not path.is_dir():
            raise ConfigurationError(f'{where}: "{given}" is neither a file nor a folder.')
        return _readable(path, where)
    if path.is_symlink():
        raise ConfigurationError(f'{where}: "{given}" is a link to {os.readlink(path)}, which does not exist.')
    whole = Path(os.path.abspath(path))
    meant = f'"{given}"' if path.is_absolute() else f'"{given}" (that is {whole})'
    raise ConfigurationError(f"{where}: {meant} does not exist.{_advice(given, whole, where)}")


def _advice(given: str, whole: Path, where: str) -> str:
    if given.startswith("~"):
        return f" A path is taken as it stands, ~ too: write {os.path.expanduser(given)}."
    if "$" in given:
        return " A path is taken as it stands, variables too: write the whole path."
    beside = Path(where.split(", ")[0].rpartition(":")[0]).parent / given
    if not Path(given).is_absolute() and beside.exists():
        return f" Paths start from the folder that one runs in; write {beside}."
    missing = whole
    while not missing.parent.is_dir():
        missing = missing.parent
    names = sorted(entry.name for entry in os.scandir(missing.parent) if not entry.name.startswith("."))
    near = nearest(missing.name, names[:1000])
    if near.startswith(" Known") and len(names) > 10:
        near = ""
    return f" {missing.parent} has no {missing.name}.{near}"


def _readable(path: Path, where: str) -> Path:
    if not os.access(path, os.R_OK | (os.X_OK if path.is_dir() else 0)):
        raise ConfigurationError(f"{where}: {path} may not be read by you. Change its permissions: chmod u+r.")
    return path
