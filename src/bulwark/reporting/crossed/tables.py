"""The cross table and the ranking of its defenses, as frames and as text; `bulwark.reporting.tables` writes them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bulwark.evaluation.ranking import SIGNIFICANT, Order, Place, Ranking
from bulwark.reporting.crossed.measured import NOTHING, SECONDS, UTILITY, Field, Line, lines, rankings, step_of
from bulwark.reporting.crossed.settings import NO_ATTACK, WORST, Cross
from bulwark.reporting.numbers import MISSING, NONE, exact, number, with_error
from bulwark.reporting.results import Results

if TYPE_CHECKING:
    import pandas as pd

PLACES = 1  # digits of a share, in percent


@dataclass(frozen=True)
class Told:
    """A table: its numbers, the same as text under two-level headings (heading, part), and how it is to be read."""

    frame: pd.DataFrame
    presented: pd.DataFrame
    note: str


def cross(spec: Cross, results: Results) -> Told:
    """Every defense under every attack on every family.

    The frame has a line per model, defense and attack: kind, label, tried (recipes), per family
    <family>.defended_percent with .stderr, .low, .high, .n, .raw (the metric itself, of one recipe) and .attack (which
    was the worst, by half of the records), utility_percent, utility_kept, within_loss, seconds, and missing.
    Raises ResultsError for a missing result.
    """
    import pandas as pd

    found = lines(spec, results)
    frame = pd.DataFrame([_numbers(line, spec) for line in found])
    told: dict[tuple[str, str], list[str]] = {
        ("", "model"): [line.model for line in found],
        ("", "defense"): [spec.defenses[line.defense] for line in found],
        ("", "attack"): [f"{line.label} ({line.kind})" if line.kind else line.label for line in found],
    }
    for name, family in spec.families.items():
        told[f"{family.label} (% defended) ↑", "mean ± SE"] = [
            MISSING if name in line.missing else _share(line.fields[name]) for line in found
        ]
    told[f"{spec.utility.label} (%)", "mean ± SE"] = [_utility(line) for line in found]
    told["kept (%)", ""] = [MISSING if UTILITY in line.missing else _kept(line) for line in found]
    told[spec.compute.label, ""] = [MISSING if SECONDS in line.missing else number(line.seconds, 0) for line in found]
    if not frame["missing"].any():
        frame = frame.drop(columns="missing")
    return Told(frame, pd.DataFrame(told), reading(spec))


def ranking(spec: Cross, results: Results) -> Told:
    """The order of the defenses by their worst case, with that of every family and the mean of these.

    The frame has a line per model and defense, the first in the order first: rank_first and rank_last, worst_percent
    with .low, .high, .family and .attack, mean_percent likewise with mean_rank_first and mean_rank_last, per family
    <family>.worst_percent with .low, .high, .attack, .rank_first and .rank_last, p_vs_<defense> (of the worst cases,
    after Holm's correction), and missing.
    """
    import pandas as pd

    rows: list[dict[str, Any]] = []
    ordered = rankings(spec, results)
    for model in results.models:
        of_model = ordered.get(model)
        names = in_order(of_model) if of_model else []
        rows += [_ranked(spec, model, name, of_model) for name in names]
        rows += [{"model": model, "defense": name, "missing": True} for name in spec.defenses if name not in names]
    frame = pd.DataFrame(rows)

    def shown(key: str, interval: bool = True) -> list[str]:
        return [MISSING if row["missing"] else _span(row, key, interval) for row in rows]

    told: dict[tuple[str, str], list[str]] = {
        ("", "model"): [row["model"] for row in rows],
        ("", "defense"): [spec.defenses[row["defense"]] for row in rows],
        ("", "rank"): [NONE if row["missing"] else ranks((row["rank_first"], row["rank_last"])) for row in rows],
        ("worst case (% defended)", ""): shown("worst_percent"),
        ("", "worst in"): [
            NONE if row["missing"] else f"{row['worst_percent.family']}: {row['worst_percent.attack']}" for row in rows
        ],
        ("mean of families (%)", ""): shown("mean_percent"),
        ("", "rank by mean"): [
            NONE if row["missing"] else ranks((row["mean_rank_first"], row["mean_rank_last"])) for row in rows
        ],
    }
    for name, family in spec.families.items():
        told[f"{family.label} (%)", ""] = shown(f"{name}.worst_percent")
    if not frame["missing"].any():
        frame = frame.drop(columns="missing")
    return Told(frame, pd.DataFrame(told), _reading_of_ranks(spec))


def in_order(of_model: Ranking) -> list[str]:
    """The defenses by the first rank that they may have, then by worst case and by the mean of families."""
    worst, mean = of_model.worst.places, of_model.mean.places
    return sorted(worst, key=lambda name: (-worst[name].worst.value, -mean[name].worst.value))


def ranks(span: tuple[int, int]) -> str:
    """ "3", or "2–5" of a rank that is not certain."""
    first, last = span
    return str(first) if first == last else f"{first}–{last}"


def reading(spec: Cross) -> str:
    """How the cross table is to be read."""
    utility = f"{100 * spec.utility.loss:g} % of {spec.utility.label}"
    return (
        "Share defended ± one standard error over records: 100 where the metric is as if all were defended, 0 as if "
        f"none. Parentheses: the attack costs more than {utility}, so that it is no worst case. Of attacks with "
        "several steps or trials, and of the worst of all, the worst within that loss is shown, chosen on one half of "
        "the records and read on the other, both ways averaged; to leave the model as it is is one of the choices, and "
        f"{spec.utility.label} are then those of what leaves least among all that was chosen. {spec.compute.label}: of "
        "all recipes that an attack tries. The metrics themselves, intervals and what was chosen are in the CSV file."
    )


def _reading_of_ranks(spec: Cross) -> str:
    return (
        f"The worst of all attacks that cost at most {100 * spec.utility.loss:g} % of {spec.utility.label}, chosen on "
        "one half of the records and read on the other, both ways averaged; of all families, of each, and the mean "
        "over the families. [low, high]: 95 % interval by a bootstrap over records and seeds. Rank: from one more than "
        "the number of defenses that are significantly better to the number of all less those that are worse "
        f"(p < {SIGNIFICANT:g} after Holm's correction for all pairs); where ranges meet, the order is not "
        "significant."
    )


def _numbers(line: Line, spec: Cross) -> dict[str, Any]:
    told: dict[str, Any] = {
        "model": line.model, "defense": line.defense, "attack": line.attack, "kind": line.kind, "label": line.label,
        "tried": line.tried,
    }  # fmt: skip
    for name in spec.families:
        field = line.fields.get(name)
        share = field.share if field else None
        low, high = (share.interval if share else None) or (None, None)
        parts = {
            "defended_percent": share and _percent(share.value),
            "stderr": share and _percent(share.stderr),
            "low": _percent(low),
            "high": _percent(high),
            "n": share and share.n,
            "raw": field and field.raw,
            "attack": field and " / ".join(dict.fromkeys(field.chosen)),
        }
        told |= {f"{name}.{part}": value for part, value in parts.items()}
    told |= {
        "utility_percent": line.utility and _percent(line.utility.value),
        "utility_stderr": line.utility and _percent(line.utility.stderr),
        "utility_kept": line.kept,
        "within_loss": None if line.kept is None else line.within,
        "seconds": line.seconds,
        "missing": ", ".join(line.missing),
    }
    return told


def _ranked(spec: Cross, model: str, defense: str, of_model: Ranking) -> dict[str, Any]:
    worst, mean = of_model.worst.places[defense], of_model.mean.places[defense]
    row: dict[str, Any] = {"model": model, "defense": defense}
    row |= {"rank_first": worst.ranks[0], "rank_last": worst.ranks[1]}
    row |= _score("worst_percent", worst)
    row["worst_percent.family"] = " / ".join(dict.fromkeys(spec.families[f].label for f, _ in worst.chosen))
    row["worst_percent.attack"] = _chosen(defense, worst)
    row |= {**_score("mean_percent", mean), "mean_rank_first": mean.ranks[0], "mean_rank_last": mean.ranks[1]}
    for name, order in of_model.families.items():
        place = order.places[defense]
        row |= _score(f"{name}.worst_percent", place)
        row[f"{name}.attack"] = _chosen(defense, place)
        row |= {f"{name}.rank_first": place.ranks[0], f"{name}.rank_last": place.ranks[1]}
    row |= {f"p_vs_{other}": _p_value(of_model.worst, defense, other) for other in of_model.worst.places}
    return row | {"missing": False}


def _score(key: str, place: Place) -> dict[str, Any]:
    low, high = place.worst.interval or (None, None)
    value = {key: _percent(place.worst.value), f"{key}.low": _percent(low), f"{key}.high": _percent(high)}
    return value


def _chosen(defense: str, place: Place) -> str:
    return " / ".join(dict.fromkeys(step_of(defense, attack) for _, attack in place.chosen))


def _p_value(order: Order, one: str, other: str) -> float | None:
    return order.p_values.get((one, other), order.p_values.get((other, one)))


def _percent(value: float | None) -> float | None:
    return None if value is None else exact(100 * value)


def _share(field: Field) -> str:
    return with_error(_percent(field.share.value), _percent(field.share.stderr), PLACES)


def _utility(line: Line) -> str:
    if UTILITY in line.missing:
        return MISSING
    if line.utility is None:
        return NONE
    return with_error(_percent(line.utility.value), _percent(line.utility.stderr), 1)


def _kept(line: Line) -> str:
    return number(_percent(line.kept), 0) if line.within else f"({number(_percent(line.kept), 0)})"


def _span(row: dict[str, Any], key: str, interval: bool) -> str:
    value = number(row[key], PLACES)
    return f"{value} [{number(row[f'{key}.low'], 0)}, {number(row[f'{key}.high'], 0)}]" if interval else value


__all__ = ["NOTHING", "NO_ATTACK", "WORST", "Told", "cross", "in_order", "ranking", "ranks", "reading"]
