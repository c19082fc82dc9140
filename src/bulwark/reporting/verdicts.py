"""How claims are shown: sentences, effects and intervals in the units of the tables; claims.json and claims.md.

What `bulwark.reporting.claims` finds is in the unit of the scores files (rates from 0 to 1), and its differences are
`recipe` minus `than`. A reader gets them as the tables show the metric (percent, 0 to 9 …), and as the value of the
recipe that the claim speaks of minus the other's, so that the sign agrees with the statement.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bulwark import files
from bulwark.reporting import worst_cases
from bulwark.reporting.columns import Column, OfRecipe
from bulwark.reporting.numbers import Quantity, p_value, quantity
from bulwark.settings import validated

READING = (
    "Intervals and p-values speak of the records: they take the trained models of these seeds as given. How far "
    "another training may differ is seen from the effects by seed. A verdict counts only if it is significant at 5 % "
    "after Holm's correction for the number of claims on this page, the undecided ones included."
)

Columns = Mapping[str, Mapping[str, Any]]
"""{"<benchmark>.<metric>": the settings of the column that shows it in a table}."""


@dataclass(frozen=True)
class Shown:
    """A condition on a model, or a claim's headline over all models, in words.

    quantity: what is measured. values: of each recipe, as (name, value). effect: a difference, or the value itself;
    of: what it is a difference of, "" for a value. p: "= 0.03", "< 0.0001", "–".
    """

    sentence: str
    quantity: str
    values: list[tuple[str, str]]
    effect: str
    of: str
    interval: str
    p: str
    n: int
    outcome: str
    reason: str
    by_seed: list[tuple[str, str]]


def write_claims(
    claims: Sequence[Mapping[str, Any]], columns: Mapping[str, Columns], json_path: Path, markdown_path: Path
) -> None:
    """Write checked claims (`check_claim`) as claims.json (a list) and claims.md (to read).

    columns: {name of a claim: {"<benchmark>.<metric>": the settings of its column in a table}}.
    """
    text = json.dumps(list(claims), indent=1, ensure_ascii=False, allow_nan=False)
    files.write_text(Path(json_path), text + "\n")
    files.write_text(Path(markdown_path), _markdown(claims, columns))


def headline(claim: Mapping[str, Any], columns: Columns) -> Shown:
    """The first condition of a claim over all its models: the one line that says what was found."""
    found = [content["conditions"][0] for content in claim["models"].values()]
    entry = {
        **found[0],
        **{key: claim[key] for key in ("effect", "interval", "n", "p_value")},
        "values": {recipe: _mean([of["values"][recipe] for of in found]) for recipe in found[0]["values"]},
        "by_seed": found[0]["by_seed"] if len(found) == 1 else {},
        "outcome": claim["verdict"],
        "reason": _correction(claim),
    }
    return _shown(claim, claim["conditions"][0], entry, columns)


def line(claim: Mapping[str, Any], columns: Columns) -> str:
    """A claim on one line: verdict, statement, effect with its interval; without these from a file that has none."""
    said = f"{claim['verdict'].upper()}: {claim['statement']}"
    try:
        found = headline(claim, columns)
    except (KeyError, StopIteration):  # written by other code than this
        return said
    return f"{said} ({found.quantity}: {found.effect}, {claim['confidence']:.0%} interval {found.interval})"


def _correction(claim: Mapping[str, Any]) -> str:
    """What the correction for many claims has changed; nothing for most."""
    alone = claim.get("uncorrected_verdict")
    return (
        f"by itself {alone}, but corrected for the number of claims p {p_value(claim['p_corrected'])}" if alone else ""
    )


def conditions(claim: Mapping[str, Any], columns: Columns) -> list[tuple[str, list[Shown]]]:
    """(model, its conditions in words) of every model of a claim."""
    return [
        (
            model,
            [
                _shown(claim, condition, entry, columns)
                for condition, entry in zip(claim["conditions"], content["conditions"], strict=True)
            ],
        )
        for model, content in claim["models"].items()
    ]


def not_measured(claim: Mapping[str, Any], columns: Columns) -> list[str]:
    """The conditions that the study does not measure, as sentences."""
    return [_sentence(claim, condition, _quantity(condition, columns), None) for condition in claim["not_measured"]]


def _shown(claim: Mapping[str, Any], condition: Mapping[str, Any], entry: Mapping[str, Any], columns: Columns) -> Shown:
    _, terms = _terms(condition)
    measured = _quantity(condition, columns)
    compared = "than" in terms
    turned = compared and claim.get("about") == terms["than"]
    sign = -1 if turned else 1
    pair = (terms["than"], terms["recipe"]) if turned else (terms["recipe"], terms.get("than"))
    say = measured.difference if compared else measured.value

    def signed(value: float | None) -> float | None:
        return None if value is None else sign * value

    return Shown(
        sentence=_sentence(claim, condition, measured, entry.get("higher_is_better")),
        quantity=measured.label,
        values=[(_name(claim, recipe), measured.value(value)) for recipe, value in entry["values"].items()],
        effect=say(signed(entry["effect"])),
        of=" − ".join(_name(claim, recipe) for recipe in pair) if compared else "",
        interval=measured.span(entry["interval"] and [sign * bound for bound in entry["interval"]], compared),
        p=p_value(entry["p_value"]),
        n=entry["n"],
        outcome=entry["outcome"],
        reason=entry["reason"],
        by_seed=[(seed, say(signed(value))) for seed, value in entry["by_seed"].items()],
    )


def _terms(condition: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """The kind of a condition and its terms."""
    return next((key, value) for key, value in condition.items() if isinstance(value, Mapping))


def _quantity(condition: Mapping[str, Any], columns: Columns) -> Quantity:
    _, terms = _terms(condition)
    column = columns.get(f"{terms['benchmark']}.{terms['metric']}")
    shown = quantity(column and validated(Column, column, "the column of a claim"), terms["metric"])
    case = validated(
        OfRecipe, {key: terms.get(key) for key in ("worst_case", "average")}, "the attacks of a claim"
    ).case
    if case is None:
        return shown
    # A table may label the metric "before", which says nothing of attacks
    named = f"{terms['metric'].replace('_', ' ')} of {terms['benchmark']}"
    return Quantity(shown.column.model_copy(update={"label": f"{named} ({worst_cases.described(case)})"}))


def _sentence(claim: Mapping[str, Any], condition: Mapping[str, Any], measured: Quantity, higher: bool | None) -> str:
    """A condition as a sentence; `higher`: whether higher is better, None where that is not known."""
    kind, terms = _terms(condition)
    what, recipe = measured.label, _name(claim, terms["recipe"])
    if kind in ("at_least", "at_most"):
        return f"{what} of {recipe}: {kind.replace('_', ' ')} {measured.value(terms['value'])}"
    than, margin = _name(claim, terms["than"]), measured.margin(terms["margin"])
    if kind == "not_worse":
        return f"{what} of {recipe}: at most {margin} worse than that of {than}"
    if kind == "equal":
        return f"{what} of {recipe}: within {margin} of that of {than}"
    way = {True: "higher", False: "lower", None: "better"}[higher]
    if terms["than"] == claim.get("about") and higher is not None:  # the same, said of the other recipe
        recipe, than, way = than, recipe, "lower" if higher else "higher"
    by = f" by more than {margin}" if terms["margin"] else ""
    return f"{what} of {recipe}: {way} than that of {than}{by}"


def _name(claim: Mapping[str, Any], recipe: str) -> str:
    return claim.get("labels", {}).get(recipe, recipe)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None


def _markdown(claims: Sequence[Mapping[str, Any]], columns: Mapping[str, Columns]) -> str:
    lines = [
        "# Claims",
        "",
        "| verdict | claim | what was measured | effect | interval | p |",
        "|---|---|---|---|---|---|",
    ]
    for claim in claims:
        found = headline(claim, columns.get(claim["id"], {}))
        cells = (
            f"**{found.outcome}**", claim["statement"], f"{found.quantity}{f' of {found.of}' if found.of else ''}",
            found.effect, f"{claim['confidence']:.0%} {found.interval}", found.p.removeprefix("= "),
        )  # fmt: skip
        lines.append(f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |")
    for claim in claims:
        changed = f" ({_correction(claim)})" if _correction(claim) else ""
        lines += ["", f"## {claim['id']}: {claim['verdict']}{changed}", ""]
        lines.append(f"{claim['statement']}. Source: {claim['source']}.")
        for model, shown in conditions(claim, columns.get(claim["id"], {})):
            lines += ["", f"{model}: {claim['models'][model]['verdict']}", ""]
            lines += [_line(entry, claim["confidence"]) for entry in shown]
        lines += [
            f"\nNot measured in this study: {text}." for text in not_measured(claim, columns.get(claim["id"], {}))
        ]
    return "\n".join([*lines, "", READING]) + "\n"


def _line(entry: Shown, confidence: float) -> str:
    values = ", ".join(f"{recipe} {value}" for recipe, value in entry.values)
    effect = f"; {entry.of}: {entry.effect}" if entry.of else ""
    seeds = f" By seed: {', '.join(value for _, value in entry.by_seed)}." if len(entry.by_seed) > 1 else ""
    return (
        f"- {entry.sentence}: **{entry.outcome}** ({entry.reason}). {values}{effect}; {confidence:.0%} interval "
        f"{entry.interval}, p {entry.p}, n = {entry.n}.{seeds}"
    )
