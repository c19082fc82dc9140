"""Reading sources as records: JSON and JSON Lines, Hub snapshots, saved (also tokenised) data sets, in usual formats.

`format` says what is expected; nothing is guessed from the content. A row that cannot be used stops the reader
with `RecordError`: file, line (or record number), reason, remedy. `sources` finds the files and rows of a path.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal, get_args

import pydantic

from bulwark.data import choosing, messages
from bulwark.data.messages import blank, short
from bulwark.data.preferences import from_transcripts
from bulwark.data.records import (
    Conversation,
    Passage,
    Preference,
    Schema,
    Tokenised,
    refuse_duplicate_ids,
    validate_line,
)
from bulwark.data.sources import TextRow, rows
from bulwark.errors import RecordError, nearest

log = logging.getLogger(__name__)

Format = Literal["native", "alpaca", "messages", "transcripts", "fields"]
OPTIONS = {"format", "fields", "longer_than", "strip", "unusable"}  # of `read_source`, as a configuration gives them
SPLIT_OPTIONS = {"parts", "where", "without", "shuffle_seed", "limit", "size", *OPTIONS}  # of `read_split`, likewise

FIELDS = ("id", "system", "instruction", "data", "response")
PREFERENCE_FIELDS = ("id", "system", "instruction", "data", "chosen", "rejected")
_READ = {"id", "messages", "conversations", "conversation", "input_ids", "attention_mask", "labels"}
_ALPACA = {"id", "instruction", "input", "output"}
# Other columns of messages and tokenised examples that go to a record's `meta`: where a row comes from, labels (level:
# 0 normal, 1 and 2 the strengths of a trait), and the projections that saved data sets carry.
META = re.compile(r"level|trait|source_file|row_id|(ref|current)_projection(_\w+)?")


def read_source(
    path: str | Path,
    schema: type[Schema] = Conversation,  # type: ignore[assignment]
    *,
    format: Format = "native",
    fields: Mapping[str, str] | None = None,
    split: str | None = None,
    subset: str | None = None,
    most: int | None = None,
    size: int | None = None,
    longer_than: int = 0,
    strip: Sequence[str] = (),
    unusable: Literal["stop", "drop"] = "stop",
) -> list[Schema]:
    """Read every record of a source, in the source's order, or the first of them, `most` at most.

    path: a .json file (a list, or one object per line), .jsonl, .parquet, .csv, .tsv; a folder written by
    `Dataset.save_to_disk`; a downloaded snapshot of a Hub data set, from which `split` (default: the only one, or
    "train") and, where it has several configurations, `subset` is taken.

    format: "native": rows have the fields of `schema`; "alpaca": instruction, input, output; "messages": a list of
    {role, content} (or of {from, value}) under "messages" or "conversations"; "fields": conversations from the columns
    that `fields` names, {system | instruction | data | response | id: column}, or preferences, with chosen and rejected
    in the place of the response. With "native", `fields` renames columns
    ({field of the schema: column}), a value of `meta` is {meta.<name>: column}, and other columns are dropped.
    "transcripts": preferences from two whole dialogues (`bulwark.data.preferences`). A record without an id gets its
    index.

    longer_than, strip: of passages: the markers in `strip` are taken off both ends of a text, with white space, and
    those that then have more characters are kept. unusable: "drop" leaves out rows that make no record, and tells in
    the log how many, and why the first of them. size: how many rows there have to be, those that are left out as well.

    Of the columns beside messages, or beside the input_ids, attention_mask and labels of `Tokenised` rows, those that
    `META` names go to `meta`; the others are dropped, and the log says which and in how many records, as it does for
    the keys of messages (reasoning beside an answer, tool calls, names) and other columns of "alpaca". A message that
    one of the marks in `messages.LEARNED` takes from the loss (0, false) becomes a turn that is not learned. The
    padding of tokenised rows is removed according to their attention_mask.

    Raises RecordError for an unusable file or record.
    """
    path = Path(path)
    fields = dict(fields or {})
    unread: Counter[str] = Counter()
    if format == "native" and fields and schema in (Conversation, Preference):
        format = "fields"
    convert = _converter(format, schema, fields, path)
    records: list[Schema] = []
    places: list[str] = []
    dropped: list[str] = []
    short_texts = there = 0
    for index, (place, row) in enumerate(islice(rows(path, split, subset), most)):
        there = index + 1
        try:
            if not isinstance(row, dict):
                raise RecordError(f"{place}: the record should be an object with named fields, not {short(row)}.")
            record = {**convert(row, place)}
            if schema is Passage and isinstance(record.get("text"), str):
                record["text"] = _stripped(record["text"], strip)
                if longer_than and len(record["text"]) <= longer_than:
                    short_texts += 1
                    continue
            if isinstance(row, TextRow):
                record = {name: _typed(value, name, schema, place) for name, value in record.items()}
            if "id" in schema.model_fields:
                record["id"] = _identity(record.get("id"), index, schema)
            records.append(validate_line(_as_json(record, place), schema, place))
        except RecordError as error:
            if unusable == "stop":
                raise
            dropped.append(str(error))
            continue
        places.append(place)
        if convert in (_from_messages, _from_tokenised):
            unread.update(key for key in row if key not in _READ and not META.fullmatch(key))
        if convert is _from_messages:
            unread.update(messages.unread_of(row))
        if convert is _from_alpaca:
            unread.update(key for key in row if key not in _ALPACA)
        if schema is Passage:
            unread.update(key for key in row if key not in {"id", *(fields.values() or ("text",))})
    if size is not None and most is None and there != size:
        raise RecordError(
            f"{path} has {there} rows, and `size` of the data set says {size}. Get the file again or, if another one "
            "is meant, write its number of rows there, or null."
        )
    if dropped:
        log.warning("%s: %d rows make no record and are left out. The first: %s", path, len(dropped), dropped[0])
    if short_texts:
        log.warning("%s: %d passages of at most %d characters are left out", path, short_texts, longer_than)
    if not records:
        left = f" that is taken ({len(dropped)} unusable, {short_texts} too short)" if dropped or short_texts else ""
        raise RecordError(f"{path} holds no record{left}. Check the file, or the split.")
    if unread:
        columns = ", ".join(f"{name} ({count} records)" for name, count in sorted(unread.items()))
        log.warning("%s: columns and keys that are left out: %s", path, columns)
    refuse_duplicate_ids(zip(places, records, strict=True))
    return records


def read_split(
    path: str | Path | Mapping[str, str],
    split: str,
    splits: Mapping[str, float | int | str],
    schema: type[Schema] = Conversation,  # type: ignore[assignment]
    *,
    parts: Mapping[str, Mapping[str, Any]] | None = None,
    where: Mapping[str, Sequence[Any]] | None = None,
    without: Mapping[str, Sequence[Any]] | None = None,
    shuffle_seed: int | None = None,
    limit: int | None = None,
    size: Mapping[str, int | None] | None = None,
    **options: Any,
) -> list[Schema]:
    """One split of a data set as the configuration describes it.

    splits: {name: share of the records (a float up to 1) | number of records (an int) | name of the source's split}.
    path: of the source, or {name of the source's split: path}. parts: the files below the source that make it up, each
    with values for the `meta` of its records (which also get source_file, and row_id from 0) or, where a schema has no
    meta, for their fields.
    where: {key of meta, or field of a schema without meta: values}; other records are dropped. A field of a field is
    `info.appended_task_id`. without: the same; these records are dropped. `limit` keeps the first records, after the
    shuffle. size: {split: how many rows are read for it, before any is left out}.
    options: `format`, `fields`, `subset` of `read_source`.
    Raises RecordError when the split or the source's is unknown, there are too few records, `where` or `without`
    leaves none, or `without` drops none.
    """
    if split not in splits:
        raise RecordError(f'There is no split "{split}".{nearest(split, splits)}')
    wanted = splits[split]
    source_split = wanted if isinstance(wanted, str) else None
    if isinstance(path, Mapping):
        name = source_split or split
        if name not in path:
            raise RecordError(f'No file is named for the split "{name}".{nearest(name, path)}')
        path, source_split, splits = path[name], None, {split: wanted}
    if parts:
        records = [record for part, meta in parts.items() for record in _read_part(path, part, meta, schema, options)]
    else:
        records = read_source(path, schema, split=source_split, size=(size or {}).get(split), **options)
    records = choosing.left_by(choosing.chosen_by(records, where or {}, path), without or {}, path)
    records = shuffled(records, shuffle_seed)[:limit]
    if isinstance(wanted, str):
        return records
    shares = {name: value for name, value in splits.items() if not isinstance(value, str)}
    return split_records(records, shares, f"{path}")[split]


def shuffled(records: Sequence[Any], seed: int | None) -> list[Any]:
    """Records in an order that depends only on the seed and their ids; None keeps the given order."""
    if seed is None:
        return list(records)
    return sorted(records, key=lambda record: hashlib.sha256(f"{seed}:{record.id}".encode()).digest())


def split_records(
    records: Sequence[Any], splits: Mapping[str, float | int], source: str = "the source"
) -> dict[str, list[Any]]:
    """Cut records, in order, into disjoint splits: {name: share (float) or number (int)}.

    Raises RecordError if they ask for more records than there are, or a split would be empty.
    """
    total = len(records)
    taken: dict[str, list[Any]] = {}
    share, number = 0.0, 0
    for name, value in splits.items():
        start = number + round(share * total)
        if isinstance(value, float):
            share += value
        else:
            number += value
        taken[name] = list(records[start : number + round(share * total)])
        if number + round(share * total) > total:
            raise RecordError(
                f'{source} has {total} records, too few for the splits up to "{name}" ({dict(splits)}). '
                "Lower their numbers, or write shares as fractions with a point."
            )
        if not taken[name]:
            raise RecordError(f'The split "{name}" of {source} ({total} records) would be empty. Raise its share.')
    return taken


def _read_part(
    folder: str | Path, part: str, meta: Mapping[str, Any], schema: type[pydantic.BaseModel], options: dict[str, Any]
) -> list[Any]:
    """The records of one file of several; their ids begin with its name, so that they are unique.

    The values that the configuration gives for the file go to `meta`, or into the fields of a schema without meta.
    """
    prefix = Path(part).with_suffix("").as_posix().replace("/", "-")
    records = []
    source: list[Any] = read_source(Path(folder) / part, schema, **options)
    for number, record in enumerate(source):
        own: dict[str, Any] = {"id": f"{prefix}-{record.id}"}
        if "meta" in schema.model_fields:
            own["meta"] = {"source_file": part, "row_id": number, **record.meta, **meta}
        else:
            own |= meta
        line = _as_json({**record.model_dump(mode="json"), **own}, f"{folder}/{part}")
        records.append(validate_line(line, schema, f"{folder}/{part}, record {number}"))
    return records


def _converter(
    format: str, schema: type[pydantic.BaseModel], fields: dict[str, str], path: Path
) -> Callable[[dict[str, Any], str], dict[str, Any]]:
    if format not in get_args(Format):
        raise RecordError(f'{path}: unknown format "{format}".{nearest(format, get_args(Format))}')
    made: type[pydantic.BaseModel] = Preference if format == "transcripts" else Conversation
    if format != "native" and schema is not made and (format, schema) != ("fields", Preference):
        raise RecordError(
            f'{path}: the format "{format}" makes {made.__name__.lower()}s; {schema.__module__} wants its own fields. '
            'Use format "native" and name the columns in "fields".'
        )
    if format in ("alpaca", "messages", "transcripts") and fields:
        raise RecordError(
            f'{path}: the format "{format}" has its own columns. Use format "fields", or leave "fields" out.'
        )
    if schema is Tokenised:
        return _from_tokenised
    if format == "native":
        renamed = fields or schema is Passage  # of a corpus, nothing but the text is wanted
        return (lambda row, place: _renamed(row, fields, schema, place)) if renamed else (lambda row, place: row)
    if format == "transcripts":
        return from_transcripts
    if format == "alpaca":
        return _from_alpaca
    if format == "messages":
        return _from_messages
    known = PREFERENCE_FIELDS if schema is Preference else FIELDS
    for name in fields:
        if name not in known:
            raise RecordError(f'{path}: "fields" maps the unknown role "{name}".{nearest(name, known)}')
    if "instruction" not in fields and "data" not in fields:
        raise RecordError(f'{path}: "fields" must name the column of the instruction or of the data.')
    if schema is Preference and not {"chosen", "rejected"} <= fields.keys():
        raise RecordError(f'{path}: "fields" must name the columns of the chosen and of the rejected response.')
    return lambda row, place: _from_fields(row, fields, place)


def _renamed(
    row: dict[str, Any], fields: dict[str, str], schema: type[pydantic.BaseModel], place: str
) -> dict[str, Any]:
    kept = {name: row[name] for name in schema.model_fields if name in row and name != "meta"}
    named = {name: _column(row, column, place) for name, column in fields.items()}
    meta = {name.removeprefix("meta."): named.pop(name) for name in fields if name.startswith("meta.")}
    return {**kept, **named, **({"meta": meta} if meta else {})}


def _stripped(text: str, markers: Sequence[str]) -> str:
    """A text without white space and markers at its ends, each as a whole."""
    before = None
    while before != text:
        before, text = text, text.strip()
        for marker in markers:
            text = text.removeprefix(marker).removesuffix(marker)
    return text


def _from_alpaca(row: dict[str, Any], place: str) -> dict[str, Any]:
    """Alpaca (Taori et al. 2023): an input of only white space counts as none."""
    columns = {"instruction": "instruction", "response": "output"}
    if not blank(row.get("input")):
        columns["data"] = "input"
    if "id" in row:
        columns["id"] = "id"
    return _from_fields(row, columns, place)


def _from_fields(row: dict[str, Any], fields: dict[str, str], place: str) -> dict[str, Any]:
    turns = []
    for role in FIELDS[1:]:
        if role not in fields:
            continue
        text = _column(row, fields[role], place)
        if role in ("system", "data") and blank(text):
            continue
        if blank(text):
            raise RecordError(f'{place}: the field "{fields[role]}" ({role}) is empty. Fill it, or remove the record.')
        if not isinstance(text, str):
            raise RecordError(f'{place}: the field "{fields[role]}" ({role}) should be text, not {short(text)}.')
        turns.append({"role": role, "text": text})
    others = (name for name in ("id", "chosen", "rejected") if name in fields)
    return {"turns": turns, **{str(name): _column(row, fields[name], place) for name in others}}


def _from_messages(row: dict[str, Any], place: str) -> dict[str, Any]:
    turns = messages.turns_of(row, place)
    return {"turns": turns, "meta": _meta(row), **({"id": row["id"]} if "id" in row else {})}


def _from_tokenised(row: dict[str, Any], place: str) -> dict[str, Any]:
    """A row for the trainer of transformers, without its padding (attention_mask 0)."""
    ids, labels = _column(row, "input_ids", place), _column(row, "labels", place)
    mask = row.get("attention_mask")
    if isinstance(mask, list) and isinstance(ids, list) and isinstance(labels, list):
        if not len(mask) == len(ids) == len(labels):
            raise RecordError(
                f"{place}: {len(ids)} input_ids, {len(mask)} in attention_mask, {len(labels)} labels. Save it again."
            )
        start = next((place for place, present in enumerate(mask) if present), 0)
        end = start + sum(map(bool, mask))
        if mask[start:end] != [1] * (end - start):
            raise RecordError(
                f"{place}: the attention_mask is not a single run of 1, so the row is packed or has gaps. Save the "
                "examples one by one; training packs them itself (training.packing)."
            )
        ids, labels = ids[start:end], labels[start:end]
    return {"input_ids": ids, "labels": labels, "meta": _meta(row), **({"id": row["id"]} if "id" in row else {})}


def _meta(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if META.fullmatch(key) and value is not None}


def _column(row: dict[str, Any], column: str, place: str) -> Any:
    if column not in row:
        raise RecordError(f'{place}: the field "{column}" is missing.{nearest(column, row)}')
    return row[column]


def _typed(cell: Any, name: str, schema: type[pydantic.BaseModel], place: str) -> Any:
    """A cell of a CSV file as the field of the schema wants it: text stays text, and an empty cell may be no value."""
    field = schema.model_fields.get(name)
    if field is None or not isinstance(cell, str):
        return cell
    kinds = {field.annotation, *get_args(field.annotation)}
    if not cell and type(None) in kinds:
        return None
    if str in kinds or not kinds & {int, float, bool}:
        return cell
    try:
        return json.loads(cell.strip().lower())
    except (ValueError, RecursionError):
        wanted = "a number" if kinds & {int, float} else "true or false"
        raise RecordError(f'{place}: the field "{name}" should be {wanted}, not {short(cell)}. Correct it.') from None


def _identity(given: Any, index: int, schema: type[pydantic.BaseModel]) -> Any:
    """The record's id in the type that the schema wants, or the index where it has none."""
    given = index if given is None else given
    wants_text = schema.model_fields["id"].annotation is str
    return str(given) if wants_text and isinstance(given, int) else given


def _as_json(record: dict[str, Any], place: str) -> str:
    try:
        line = json.dumps(record, ensure_ascii=False)
        line.encode()
    except (TypeError, ValueError, RecursionError) as error:  # a lone surrogate is a ValueError
        raise RecordError(
            f"{place}: holds something that is not plain text or numbers ({error}). Convert it."
        ) from error
    return line
