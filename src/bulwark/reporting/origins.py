"""Where a number comes from: a sheet per model, recipe and benchmark, which the report opens when one clicks a number.

A sheet has the values by seed and what is recorded of how they were made: files, digests, decoding, judge, commit,
versions. Seeds that agree share a line. All of it is text.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from bulwark import files
from bulwark.errors import BulwarkError
from bulwark.reporting.numbers import NONE, error, number
from bulwark.reporting.results import Cell, Results

_COUNTS = {
    "answers": "answers",
    "truncated_prompts": "prompts cut",
    "answers_at_length_limit": "answers cut by the length limit",
    "empty_answers": "empty answers",
    "failed_judgements": "failed judgements",
}


@dataclass(frozen=True)
class Sheet:
    """What is known of a measurement. metrics: (name, value by seed); facts: (what, lines); settings: JSON, or ""."""

    id: str
    model: str
    recipe: str
    benchmark: str
    seeds: list[int]
    metrics: list[tuple[str, list[tuple[str, str, str]]]]
    facts: list[tuple[str, list[str]]]
    settings: str


class Origins:
    """The sheets of a page: asked for by what shows a number, then written once each."""

    def __init__(self, results: Results) -> None:
        self._results = results
        self._asked: dict[tuple[str, str, str], dict[str, None]] = {}

    def of(self, model: str, recipe: str, benchmark: str, metric: str) -> str:
        """The id of the sheet on a measurement, which then tells of this metric; "" if there is no such measurement."""
        key = (model, recipe, benchmark)
        try:
            self._results.seeds(*key)
        except BulwarkError:
            return ""
        self._asked.setdefault(key, {})[metric] = None
        return f"origin-{list(self._asked).index(key)}"

    def known(self, model: str, recipe: str, benchmark: str) -> str:
        """The id of the sheet on a measurement if it was asked for already, else ""."""
        asked = list(self._asked)
        key = (model, recipe, benchmark)
        return f"origin-{asked.index(key)}" if key in self._asked else ""

    def sheets(self) -> list[Sheet]:
        """All that were asked for."""
        return [
            _sheet(f"origin-{number}", self._results.seeds(*key), list(metrics))
            for number, (key, metrics) in enumerate(self._asked.items())
        ]


def _sheet(name: str, cells: Mapping[int, Cell], metrics: Iterable[str]) -> Sheet:
    first = next(iter(cells.values()))
    settings = {seed: cell.content["provenance"].get("settings") for seed, cell in cells.items()}
    return Sheet(
        id=name,
        model=first.model,
        recipe=first.recipe,
        benchmark=first.benchmark,
        seeds=list(cells),
        metrics=[(metric, [_values(cell, metric) for cell in cells.values()]) for metric in metrics],
        facts=[(what, lines) for what, by_seed in facts(cells) if (lines := _lines(by_seed))],
        settings="" if first.content["provenance"].get("settings") is None else _plain(settings[first.seed]),
    )


def _values(cell: Cell, metric: str) -> tuple[str, str, str]:
    """Value ± standard error, the 95 % interval and n, as the scores file has them."""
    entry = cell.metric(metric)
    value = number(entry["value"], 4)
    stderr = "" if entry["stderr"] is None else f" ± {error(entry['stderr'], 4)}"
    interval = NONE if not entry["interval"] else f"[{', '.join(number(bound, 4) for bound in entry['interval'])}]"
    return value + stderr, interval, str(entry.get("n", cell.content["n"]))


def facts(cells: Mapping[int, Cell]) -> Iterable[tuple[str, dict[int, str]]]:
    """What is recorded, by seed; empty where it is not."""

    def each(fact) -> dict[int, str]:
        return {
            seed: fact(cell, cell.content["provenance"], cell.content.get("reported", {}))
            for seed, cell in cells.items()
        }

    yield "files", {seed: str(cell.scores) for seed, cell in cells.items()}
    yield "records digest", each(lambda _, made, __: _short(made.get("records_digest") or made.get("records")))
    yield "answers digest", each(lambda _, made, __: _short(made.get("answers_digest")))
    yield "checkpoint digest", each(lambda _, made, __: _short(made.get("checkpoint_digest") or made.get("checkpoint")))
    yield "settings digest", each(lambda _, made, __: _short(_digest(made.get("settings"))))
    yield "decoding", each(lambda _, made, __: decoding(made.get("settings") or {}))
    yield "judge", each(lambda _, made, __: judge(made.get("settings") or {}))
    yield "prompts", each(lambda _, made, __: _prompts(made))
    yield "counts", each(lambda _, __, reported: _counts(reported))
    yield "commit", each(lambda _, made, __: _commit(made.get("git") or {}))
    yield "made", each(lambda _, made, __: _made(made))
    yield "processor", each(lambda _, made, __: _processor(made.get("hardware") or {}))
    yield "versions", each(lambda _, made, __: ", ".join(f"{k} {v}" for k, v in (made.get("versions") or {}).items()))


def decoding(settings: Mapping[str, Any]) -> str:
    """A benchmark's decoding in words; "" if it has none."""
    given = settings.get("decoding")
    if not isinstance(given, Mapping):
        return ""
    if given.get("do_sample"):
        how = f"sampled at temperature {given.get('temperature', 1.0):g}, top-p {given.get('top_p', 1.0):g}"
        if (likeliest := given.get("top_k")) is not None:
            how += f", top-k {likeliest}"
    else:
        how = "greedy"
    if (longest := given.get("max_new_tokens")) is not None:
        how += f", at most {longest} new tokens"
    if (prompt := given.get("max_prompt_tokens")) is not None:
        how += f", prompts of at most {prompt}"
    return how


def judge(settings: Mapping[str, Any]) -> str:
    """A benchmark's judge in words."""
    given = (settings.get("scoring") or {}).get("judge")
    if not isinstance(given, Mapping):
        return "none, computed from the answers" if "decoding" in settings else ""
    own = given.get(given.get("kind"), {})
    name = own.get("model") if isinstance(own, Mapping) else None
    scale = f", 0 to {given['scale']}" if "scale" in given else ""
    return f"{given.get('kind')}{f' {name}' if name else ''}{scale}"


def _lines(by_seed: Mapping[int, str]) -> list[str]:
    """One line if the seeds agree, else one per seed; none if nothing is known."""
    if not any(by_seed.values()):
        return []
    if len(set(by_seed.values())) == 1:
        return [next(iter(by_seed.values()))]
    return [f"seed {seed}: {value or NONE}" for seed, value in by_seed.items()]


def _prompts(made: Mapping[str, Any]) -> str:
    parts = [f"template {made['template']}" if made.get("template") else "", _short(made.get("prompt"))]
    return ", ".join(filter(None, parts))


def _counts(reported: Mapping[str, Any]) -> str:
    known = [(label, reported[key]) for key, label in _COUNTS.items() if isinstance(reported.get(key), int)]
    return ", ".join(f"{count} {label}" for label, count in known)


def _commit(git: Mapping[str, Any]) -> str:
    changed = " with changes that are in no commit" if git.get("dirty") else ""
    return f"{git['commit']}{changed}" if git.get("commit") else "unknown" if "commit" in git else ""


def _made(made: Mapping[str, Any]) -> str:
    seconds = f"{made['wall_seconds']:g} s" if isinstance(made.get("wall_seconds"), int | float) else ""
    return ", ".join(filter(None, (made.get("time"), made.get("device"), made.get("dtype"), seconds)))


def _processor(hardware: Mapping[str, Any]) -> str:
    """The processor, and how its sums were rounded where that was set; where it was not, another may give others."""
    set_to = [f"{name}={value}" for name, value in (hardware.get("rounding") or {}).items() if value is not None]
    return ", ".join(filter(None, (hardware.get("cpu"), *set_to)))


def _digest(settings: Any) -> str | None:
    return None if settings is None else files.digest({"settings": settings})


def _short(digest: Any) -> str:
    return str(digest)[:16] if digest else ""


def _plain(settings: Any) -> str:
    return json.dumps(settings, indent=1, ensure_ascii=False)
