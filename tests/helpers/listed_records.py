"""Records for listed models: the miniature's, in the place of data sets of the same kind, and few of them."""

from __future__ import annotations

import itertools
import json
from functools import cache
from pathlib import Path
from typing import Any

from bulwark.config import loading, overlays
from bulwark.config.catalogue import Catalogue
from bulwark.config.sources import schema_of
from bulwark.data import readers
from bulwark.data.records import Passage
from bulwark.miniature import records as miniature
from bulwark.miniature.settings import MiniatureSettings

CONFIG = Path(__file__).parents[2] / "config"
RECORDS = 4
TEXTS = 20  # the fewest that a concept is found in
# Of Open Prompt Injection, each with two classes; a pair of one task is of two records with different labels.
TASKS = ("sentiment_analysis", "duplicate_sentence_detection", "natural_language_inference")
# What stands for data sets of a kind that the miniature has none of.
OWN: dict[str, list[dict[str, Any]]] = {
    "gsm8k": [
        {
            "id": f"g{n}",
            "question": f"anna has {n} dogs and ben has 2 . count them .",
            "answer": f"{n} + 2 = {n + 2}\n#### {n + 2}",
        }
        for n in range(RECORDS)
    ],
    "mtbench": [
        {"id": f"m{n}", "prompt": ["name the first name .", "name the last one ."], "category": "writing"}
        for n in range(RECORDS)
    ],
}


@cache
def catalogue() -> Catalogue:
    """The papers' configuration."""
    return loading.load(overlays.read([], CONFIG), CONFIG)


@cache
def stand_ins() -> dict[str, str]:
    """{data set: the miniature's in its place}: the one that the same entity reads there under the same name."""
    found: dict[str, str] = {}
    ours = catalogue()
    for section in ("steps", "benchmarks"):
        for name in getattr(ours, section):
            theirs = ours.resolve(section, None, name)
            here = ours.resolve(section, "miniature", name)
            pairs_of = [(theirs.dataset, here.dataset)] if section == "benchmarks" else []
            for key in theirs.inputs.keys() & here.inputs.keys():
                parts = [resolved.inputs[key].split("/") for resolved in (theirs, here)]
                if all(part[0] == "data" for part in parts):
                    pairs_of.append((parts[0][1], parts[1][1]))
            for one, other in pairs_of:
                if other.startswith("miniature") and ours.datasets[one].kind == ours.datasets[other].kind:
                    found.setdefault(one, other)
    for name, entity in ours.datasets.items():
        same = [other for other, e in ours.datasets.items() if other.startswith("miniature_") and e.kind == entity.kind]
        if same:
            found.setdefault(name, same[0])
    return found


def fitted(dataset: str, kind: str, place: int) -> dict[str, Any]:
    """What listed settings expect of a record at this place, and the miniature's records of the kind say otherwise."""
    if kind == "bipia":
        task = "code" if dataset == "bipia_code" else "email"
        return {"task": task, "question": "what is it ?", "error": "it stops .", "code": "do it ."}
    if kind == "harmbench":
        return {"category": ("standard", "contextual")[place % 2]}
    if kind == "open_prompt_injection":
        return {"task": TASKS[place % 3], "label": place // 3 % 2}
    return {}


@cache
def records_of(dataset: str, split: str) -> tuple[Any, ...]:
    """A few records of the kind of a data set."""
    entity = catalogue().datasets[dataset]
    if entity.kind in OWN:
        return tuple(schema_of(entity.kind).model_validate_json(json.dumps(row)) for row in OWN[entity.kind])
    if entity.source.mixture:
        parts = list(entity.source.mixture)
        return tuple(
            record.model_copy(update={"id": f"{part}-{record.id}"})
            for part in parts[:2]
            for record in records_of(part, split)[: RECORDS // len(parts[:2])]
        )
    if entity.kind == "passage":
        rows = records_of("alpaca_cleaned", split)
        return tuple(Passage(id=row.id, text=" ".join(turn.text for turn in row.turns)) for row in rows)
    small = catalogue().datasets[stand_ins()[dataset]]
    ours = split if split in small.splits else next(iter(small.splits))
    wanted = small.splits[ours]
    name, count = (wanted, None) if isinstance(wanted, str) else (ours, min(int(wanted), 40))
    rows = miniature.records(small.source.miniature, name, MiniatureSettings(), count)
    options = small.model_dump(include=set(readers.SPLIT_OPTIONS))
    path = Path(f".{dataset}-{split}.jsonl")
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    read = readers.read_split({ours: str(path)}, ours, {ours: ours}, schema_of(small.kind), **options)
    path.unlink()
    groups: dict[Any, list[Any]] = {}
    for record in read:
        of = (
            getattr(record, "label", None)
            or getattr(record, "meta", {}).get("level")
            or getattr(record, "category", None)
        )
        groups.setdefault(of, []).append(record)
    mixed = [record for several in itertools.zip_longest(*groups.values()) for record in several if record is not None]
    if hasattr(mixed[0], "trait") and entity.kind in ("contrast", "traits"):
        mixed = [record.model_copy(update={"trait": dataset.partition("_")[2]}) for record in mixed]
    mixed = [record.model_copy(update=fitted(dataset, entity.kind, place)) for place, record in enumerate(mixed)]
    if dataset == "alpaca_cleaned" and split == "train":  # a concept is found in instructions with data
        return tuple(sorted(mixed, key=lambda record: -max(len(turn.text) for turn in record.turns[:-1]))[:TEXTS])
    return tuple(mixed[: 4 * len(TASKS) if entity.kind == "open_prompt_injection" else RECORDS])
