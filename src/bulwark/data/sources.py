"""The rows of a path: data files, saved data sets, snapshots of Hub data sets. Never uses the network."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bulwark.data.records import DECODER, lines_of, parsed
from bulwark.errors import RecordError, nearest

JOINED = "+"  # between the names of splits that are read one after the other
_DATA_SUFFIXES = (".jsonl", ".json", ".parquet", ".csv", ".tsv")
_NOT_DATA = ("download.json", "dataset_info.json", "dataset_infos.json", "state.json")
# What a README may set of how its files are read: where they are, the separator, and what is nothing to text.
_AS_EVER = {"name", "version", "data_dir", "data_files", "description", "features", "sep", "delimiter"}
_AS_EVER |= {"dtype", "na_values", "keep_default_na", "na_filter", "low_memory", "engine", "chunksize"}


class TextRow(dict[str, str]):
    """A row of a file that knows nothing but text."""


def rows(path: Path, split: str | None = None, subset: str | None = None) -> Iterator[tuple[str, Any]]:
    """Yield (place, row) for every record of `path`; place: the file with the line or record number.

    path: a data file, a folder written by `save_to_disk`, or a folder of data files, where `split` and `subset` choose
    (as its README declares or, without that, by the names of the files). "a+b" is split a and then split b.
    Raises RecordError if there is no such split or a file cannot be read.
    """
    if split is not None and JOINED in split:
        for one in split.split(JOINED):
            yield from rows(path, one, subset)
        return
    if not path.exists():
        raise RecordError(f"{path} does not exist. Check the path, or download the data set first.")
    if path.is_file():
        yield from _file_rows(path)
    elif (path / "dataset_dict.json").exists() or (path / "state.json").exists():
        yield from _saved_rows(path, split)
    elif describes_its_splits(path):
        yield from _hub_rows(path, split, subset)
    else:
        for file in files_of_split(path, split, subset):
            yield from _file_rows(file)


def _file_rows(path: Path) -> Iterator[tuple[str, Any]]:
    ending = path.suffix.lower()
    if ending == ".jsonl":
        yield from _json_lines(path, "Write one JSON object per line.")
    elif ending == ".json":
        yield from _json_rows(path)
    elif ending in (".csv", ".tsv"):
        yield from _csv_rows(path, "," if ending == ".csv" else "\t")
    elif ending == ".parquet":
        yield from _parquet_rows(path)
    else:
        raise RecordError(f"{path}: the ending should be one of {', '.join(_DATA_SUFFIXES)}. Convert the file.")


def _csv_rows(path: Path, delimiter: str) -> Iterator[tuple[str, TextRow]]:
    """The rows below a line of column names. Every cell is text, as it stands: 020, NA and null, too (RFC 4180)."""
    reader = csv.reader(io.StringIO(_text(path), newline=""), delimiter=delimiter, strict=True)
    columns: list[str] = []
    start = 1
    old_limit = csv.field_size_limit(sys.maxsize)
    try:
        for cells in reader:
            place, start = f"{path}, line {start}", reader.line_num + 1
            if not columns:
                columns = _column_names(cells, delimiter, place)
            elif len(cells) == len(columns):
                yield place, TextRow(zip(columns, cells, strict=True))
            elif cells:
                raise RecordError(
                    f"{place}: {len(cells)} fields where the header names {len(columns)} ({', '.join(columns)}). Put "
                    'text that holds the separator between double quotes: "First, name a city.".'
                )
    except csv.Error as error:
        raise RecordError(
            f"{path}, line {start}: not valid CSV ({error}). A text that holds quotes stands between double quotes, "
            'with its own doubled: "He said ""no"".".'
        ) from error
    finally:
        csv.field_size_limit(old_limit)


def _column_names(cells: list[str], delimiter: str, place: str) -> list[str]:
    """The names in the first line. Raises RecordError if one is empty or stands twice, or the separator is another."""
    other = next((mark for mark in ",;\t|" if len(cells) == 1 and mark != delimiter and mark in cells[0]), None)
    if other is not None:
        raise RecordError(
            f"{place}: the column names are separated by {other!r}, not by {delimiter!r}. Save the file with "
            f"{delimiter!r}, or as .jsonl."
        )
    for name in cells:
        if not name.strip():
            raise RecordError(f"{place}: a column has no name. The first line names the columns.")
        if cells.count(name) > 1:
            raise RecordError(f'{place}: two columns are called "{name}". Rename one.')
    return cells


def _parquet_rows(path: Path) -> Iterator[tuple[str, Any]]:
    import pyarrow
    from pyarrow import parquet

    try:
        yield from _numbered(
            path, (row for batch in parquet.ParquetFile(path).iter_batches() for row in batch.to_pylist())
        )
    except (pyarrow.ArrowException, OSError) as error:
        raise RecordError(f"{path}: not readable as Parquet ({error}). Make the file again.") from error


def _text(path: Path) -> str:
    """A text file without its byte-order mark. Raises RecordError if it is empty or not UTF-8."""
    raw = path.read_bytes()
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise RecordError(
            f"{path}, line {line}: not valid UTF-8 (byte 0x{raw[error.start]:02x}). Save the file as UTF-8."
        ) from error
    if not text.strip():
        raise RecordError(f"{path} is empty. Make it again, or name another file.")
    return text


def _json_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """A list of records, or one object per line under the ending .json."""
    text = _text(path)
    if not text.lstrip().startswith("["):
        yield from _json_lines(
            path, _lists_in(text) + "Write a list of records, [{…}, …], or one JSON object per line."
        )
        return
    try:
        rows = parsed(text)
    except json.JSONDecodeError as error:
        raise RecordError(f"{path}, line {error.lineno}: not valid JSON ({error.msg}). Correct the file.") from error
    except ValueError as error:
        line = text.count("\n", 0, _start_of_fault(text)) + 1
        raise RecordError(f"{path}, line {line}: in the record that starts here {error}. Correct it.") from error
    yield from _numbered(path, rows)


def _lists_in(text: str) -> str:
    """Says which keys hold the lists, where a file is one object over several lines."""
    if "\n" not in text.strip():
        return ""
    with contextlib.suppress(ValueError):
        whole = parsed(text)
        keys = whole if isinstance(whole, dict) else {}
        lists = [f'"{key}"' for key, value in keys.items() if isinstance(value, list)]
        return f"The file is one object{' with a list under ' + ', '.join(lists) if lists else ''}. "
    return ""


def _start_of_fault(text: str) -> int:
    """Where in a JSON list the first value starts that cannot be read."""
    position = text.index("[") + 1
    while True:
        position = re.compile(r"[\s,]*").match(text, position).end()  # type: ignore[union-attr]
        try:
            _, position = DECODER.raw_decode(text, position)
        except (ValueError, RecursionError):
            return position


def _json_lines(path: Path, remedy: str) -> Iterator[tuple[str, Any]]:
    for place, line in lines_of(path):
        try:
            yield place, parsed(line.removeprefix("\ufeff"))
        except json.JSONDecodeError as error:
            raise RecordError(f"{place}: not valid JSON ({error.msg}). {remedy}") from error
        except ValueError as error:
            raise RecordError(f"{place}: {error}. Correct it.") from error


def _saved_rows(path: Path, split: str | None) -> Iterator[tuple[str, Any]]:
    """A folder written by Dataset.save_to_disk or DatasetDict.save_to_disk."""
    import datasets
    import pyarrow

    try:
        loaded = datasets.load_from_disk(str(path))
    except (OSError, ValueError, KeyError, pyarrow.ArrowException) as error:
        raise RecordError(f"{path}: the saved data set cannot be read ({error}). Save it again.") from error
    if isinstance(loaded, datasets.DatasetDict):
        loaded = loaded[_chosen(list(loaded), split, path)]
    elif split is not None:
        raise RecordError(f'{path} is a single data set without splits, so it has no "{split}". Ask for a share of it.')
    yield from _numbered(path, loaded)


def _hub_rows(path: Path, split: str | None, subset: str | None) -> Iterator[tuple[str, Any]]:
    """A snapshot whose README lists the files of each split. Text files are read as they are everywhere else."""
    import datasets
    import yaml

    with tempfile.TemporaryDirectory() as cache:
        try:
            builder = datasets.load_dataset_builder(str(path), name=subset, cache_dir=cache)
            listed = builder.config.data_files
            files = [Path(file) for file in listed[_chosen(list(listed), split, path)]]
            if not _read_by_us(path, files, builder.config):
                loaded = datasets.load_dataset(str(path), name=subset, cache_dir=cache)
                yield from _numbered(path, loaded[_chosen(list(loaded), split, path)])
                return
        except (OSError, ValueError, yaml.YAMLError, datasets.exceptions.DatasetsError) as error:
            raise RecordError(f"{path}: the data set cannot be read: {error}") from error
    for file in files:
        if file.suffix.lower() == ".csv":
            yield from _csv_rows(file, builder.config.sep or ",")
        else:
            yield from _file_rows(file)


def _read_by_us(path: Path, files: list[Path], config: Any) -> bool:
    """Whether the files are text files that are read here: pandas takes NA and null for no value, and 020 for 20.0.

    Raises RecordError if the README sets how a table is read, by more than its separator and what counts as no value.
    """
    endings = {file.suffix.lower() for file in files}
    if not endings <= {".jsonl", ".json", ".csv", ".tsv"}:
        return False
    usual = vars(type(config)())
    changed = sorted(key for key in usual.keys() - _AS_EVER if getattr(config, key) != usual[key])
    if changed and not endings <= {".jsonl", ".json"}:
        raise RecordError(
            f"{path}: its README sets {', '.join(changed)} for its tables, which is not supported. Convert the files "
            "to .jsonl, and name them as the source."
        )
    return not changed


def describes_its_splits(folder: Path) -> bool:
    readme = folder / "README.md"
    if not readme.is_file():
        return False
    header = re.match(r"---\n(.*?)\n---", readme.read_text(encoding="utf-8", errors="replace"), re.DOTALL)
    return header is not None and re.search(r"^configs:", header.group(1), re.MULTILINE) is not None


def files_of_split(folder: Path, split: str | None, subset: str | None) -> list[Path]:
    """The data files of a folder: the only one, or those with the split (and subset) as a word in their path."""
    paths = [path.relative_to(folder) for path in sorted(folder.rglob("*"))]
    names = [
        path.as_posix()
        for path in paths
        if path.suffix.lower() in _DATA_SUFFIXES
        and path.name not in _NOT_DATA
        and not any(p.startswith(".") for p in path.parts)
    ]
    if not names:
        raise RecordError(f"{folder} holds no data file ({', '.join(_DATA_SUFFIXES)}). Check the path or the download.")
    for word in (subset, split):
        if word is not None:
            named = [name for name in names if _has_word(name, word)]
            if not named:
                raise RecordError(f'{folder}: no file is named after "{word}"; there are {", ".join(names[:10])}.')
            names = named
    if split is None and len(names) > 1:
        training = [name for name in names if _has_word(name, "train")]
        if not training:
            present = ", ".join(names[:10])
            raise RecordError(f"{folder} holds several data files ({present}). Name the split, or one file.")
        names = training
    return [folder / name for name in names]


def _has_word(path: str, word: str) -> bool:
    return re.search(rf"(?<![a-z0-9]){re.escape(word)}(?![a-z])", path, re.IGNORECASE) is not None


def _chosen(available: list[str], split: str | None, path: Path) -> str:
    wanted = split or (available[0] if len(available) == 1 else "train")
    if wanted not in available:
        raise RecordError(f'{path} has no split "{wanted}".{nearest(wanted, available)}')
    return wanted


def _numbered(path: Path, rows: Any) -> Iterator[tuple[str, Any]]:
    return ((f"{path}, record {number}", row) for number, row in enumerate(rows, start=1))
