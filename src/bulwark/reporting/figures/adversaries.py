"""Adversaries: one metric after every attack, a row per defense and a column per attack, as shades with the values.

TAR's paper draws the accuracy on what was forgotten after each of its adversaries (Tamirisa et al. 2024, arXiv
2408.00761, Fig. 4). Values are means over seeds; their errors are in the tables.
"""

from __future__ import annotations

from typing import Any

from bulwark.reporting.columns import BASE, attacks_on, those_named
from bulwark.reporting.figures import look
from bulwark.reporting.numbers import number
from bulwark.reporting.results import Results
from bulwark.reporting.settings import Figure

_FIELD = 0.52, 0.36  # inches across and down
_MARGIN = 2.6, 2.4  # inches for the names of rows and columns
_DARK = 0.6  # of the scale, from which text on a shade is white


def draw(figure: Figure, results: Results, printed: dict) -> Any:
    """The canvas."""
    spec = figure.adversaries
    names = [attack for given in spec.over(BASE) for attack in _each(given, figure, results)]
    across = len(names) + spec.before
    width = max(5.2, _FIELD[0] * across + _MARGIN[0])
    height = (_FIELD[1] * len(figure.rows) + _MARGIN[1]) * len(results.models) + 0.4
    canvas, panels = look.panels(len(results.models), 1, width, height)
    missing = 0
    for panel, model in zip(panels.flat, results.models, strict=True):
        values = [
            [_value(results, model, recipe, attack, figure) for attack in ([None] if spec.before else []) + names]
            for recipe in figure.rows
        ]
        known = [value for row in values for value in row if value is not None]
        missing += sum(value is None for row in values for value in row)
        ends = figure.limits if spec.shown.percent or not known else (min(known), max(known))
        shades = [[float("nan") if value is None else value for value in row] for row in values]
        panel.imshow(shades, cmap="viridis_r", vmin=ends[0], vmax=ends[1], aspect="auto")
        for y, row in enumerate(values):
            for x, value in enumerate(row):
                dark = value is not None and (value - ends[0]) > _DARK * (ends[1] - ends[0])
                style = {"ha": "center", "va": "center", "fontsize": 7, "color": "white" if dark else look.INK}
                panel.text(x, y, number(value, spec.shown.places), **style)
        labels = (["before"] if spec.before else []) + [figure.label(name) for name in names]
        panel.set_xticks(range(across), labels, rotation=60, ha="right", rotation_mode="anchor", fontsize=7.5)
        panel.set_yticks(range(len(figure.rows)), [figure.label(recipe) for recipe in figure.rows], fontsize=8)
        panel.tick_params(length=0)
        panel.grid(False)
        panel.set_title(model if len(results.models) > 1 else "", fontsize=10)
    several = len({cell.seed for cell in results.cells}) > 1
    unit = " (%)" if spec.shown.percent else ""
    note = f"{spec.shown.label}{unit} after each attack; {look.seeds(results.cells)}"
    note += "; means over seeds" if several else ""
    note += f"; fields without a value: {missing}" if missing else ""
    look.foot(canvas, note, [], [])
    return canvas


def _each(attack: str, figure: Figure, results: Results) -> list[str]:
    """An attack, or its trials each by itself, which the first of the rows has."""
    first = figure.rows[0]
    prefix = "" if first == BASE else f"{first}+"
    return [name.removeprefix(prefix) for name in those_named(attacks_on(first, (attack,)), results.recipes)]


def _value(results: Results, model: str, recipe: str, attack: str | None, figure: Figure) -> float | None:
    """The metric of a recipe after an attack, None standing for none, in the unit of the figure."""
    shown = figure.adversaries.shown
    (under,) = (recipe,) if attack is None else attacks_on(recipe, (attack,))
    value = results.estimate(model, under, shown.benchmark, shown.metric).value
    return None if value is None else value * shown.scale
