"""Which records of a data set are taken, by what they say of themselves: a split by level, by label, by probe.

A record is chosen by a key of its meta or, where its schema has none, by a field, or a field of a field:
`info.appended_task_id`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pydantic

from bulwark.errors import RecordError, nearest


def chosen_by(records: list[Any], where: Mapping[str, Sequence[Any]], path: Any) -> list[Any]:
    """The records that have one of these values under each key. Raises RecordError if no record has, or has the key."""
    for key, values in where.items():
        labels = _labels(records, key, "where", path)
        records = [record for record, label in zip(records, labels, strict=True) if label in values]
        if not records:
            raise RecordError(f'{path}: no record has "{key}" in {list(values)}; there are {_some(labels)}.')
    return records


def left_by(records: list[Any], without: Mapping[str, Sequence[Any]], path: Any) -> list[Any]:
    """The records that have none of these values under any key.

    Raises RecordError if none is left, or a key drops none: then it, or a value, is written otherwise in the records.
    """
    for key, values in without.items():
        labels = _labels(records, key, "without", path)
        left = [record for record, label in zip(records, labels, strict=True) if label not in values]
        if not left:
            raise RecordError(f'{path}: every record has "{key}" in {list(values)}, so "without" leaves none.')
        if len(left) == len(records):
            raise RecordError(
                f'{path}: no record has "{key}" in {list(values)}, so "without" drops none; there are {_some(labels)}.'
            )
        records = left
    return records


def _labels(records: Sequence[pydantic.BaseModel], key: str, said: str, path: Any) -> list[Any]:
    """What each record has under `key`, of its meta or, where its schema has none, its fields; None if it has not."""
    known: set[str] = set()
    labels = []
    for record in records:
        own: Any = getattr(record, "meta", record)
        first, *rest = (key,) if own is not record else key.split(".")
        names = dict(own)
        known.update(names)
        label = names.get(first)
        for name in rest:
            inside = dict(label) if isinstance(label, (pydantic.BaseModel, Mapping)) else {}
            known.update(f"{first}.{other}" for other in inside)
            first, label = f"{first}.{name}", inside.get(name)
        labels.append(label)
    if key not in known:
        raise RecordError(f'{path}: "{said}" asks for "{key}", which no record has.{nearest(key, known)}')
    return labels


def _some(labels: Sequence[Any]) -> str:
    """The labels that there are, each once, ten at most."""
    present = sorted(set(map(repr, labels)))
    return ", ".join(present[:10]) + (" …" if len(present) > 10 else "")
