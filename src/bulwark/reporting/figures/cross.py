"""The cross table as a picture: a map per family of defenses under attacks, and the defenses in order.

A map has a row per defense and a column per attack, with the share defended as shade and number. Parentheses: the
attack costs more utility than is allowed. Below are the worst cases with their intervals and ranks, and the mean over
families. Colours are those of cividis (Nuñez et al. 2018), whose order the colour-blind see as others do.
"""

from __future__ import annotations

from typing import Any

from bulwark.evaluation.ranking import Order, Ranking
from bulwark.reporting.crossed.measured import SECONDS, UTILITY, Line, lines, rankings
from bulwark.reporting.crossed.settings import NO_ATTACK, WORST, Cross
from bulwark.reporting.crossed.tables import in_order, ranks
from bulwark.reporting.figures import look
from bulwark.reporting.numbers import MISSING, number
from bulwark.reporting.results import Results
from bulwark.reporting.settings import Figure

_ACROSS = 3  # maps beside one another
_FIELD = 0.38, 0.27  # inches across and down
_NAMES = 1.5, 1.45  # inches for the names of rows and columns
_MAP = "cividis"
_DARK = 0.55  # of the scale, up to which text on a shade is white


def draw(figure: Figure, results: Results, printed: dict) -> Any:
    """The canvas."""
    from matplotlib.figure import Figure as Canvas

    spec = figure.crossed
    found, ordered = lines(spec, results), rankings(spec, results)
    maps = [*spec.families, ""]  # the last is of utility
    down = -(-len(maps) // _ACROSS)
    rows, attacks = len(spec.defenses), len(spec.attacks) + 2
    width = _ACROSS * (_FIELD[0] * attacks + 0.35) + _NAMES[0] + 0.4
    tall = _FIELD[1] * rows
    heights = [*[tall + 0.35] * (down - 1), tall + _NAMES[1], tall + 0.75]
    canvas = Canvas(figsize=(width, len(results.models) * (sum(heights) + 0.3)), layout="constrained")
    grid = canvas.add_gridspec(
        len(results.models) * (down + 1), 2 * _ACROSS, height_ratios=heights * len(results.models)
    )
    for place, model in enumerate(results.models):
        top = place * (down + 1)
        of_model = [line for line in found if line.model == model]
        for number_, name in enumerate(maps):
            y, x = divmod(number_, _ACROSS)
            panel = canvas.add_subplot(grid[top + y, 2 * x : 2 * x + 2])
            shades = _map(panel, spec, of_model, name, names=x == 0, attacks=number_ + _ACROSS >= len(maps))
            told = spec.families[name].label if name else _kept(spec)
            panel.set_title(f"{model}: {told}" if len(results.models) > 1 else told, fontsize=9.5)
        _bar(canvas, shades, canvas.axes[-len(maps) :])
        if model in ordered:
            _orders(canvas, grid, top + down, spec, ordered[model])
        else:
            panel = canvas.add_subplot(grid[top + down, :])
            panel.axis("off")
            panel.text(0.5, 0.5, "no order: of every defense something is missing", ha="center", color=look.GREY)
    look.foot(canvas, _note(spec, results, found), [], [])
    return canvas


def rows(figure: Figure, results: Results) -> list[dict[str, Any]]:
    """What is drawn, as numbers: a cell per family, defense and attack, and a point per defense and order."""
    spec = figure.crossed
    told: list[dict[str, Any]] = []
    for line in lines(spec, results):
        for name in spec.families:
            share = line.fields[name].share if name in line.fields else None
            low, high = (share.interval if share else None) or (None, None)
            told.append(_row(spec, name, line, share and share.value, low, high))
        told.append(_row(spec, "", line, line.kept))
    for model, of_model in rankings(spec, results).items():
        for title, order in _named(of_model).items():
            for name in in_order(of_model):
                place = order.places[name]
                low, high = place.worst.interval or (None, None)
                ends = {"low": _percent(low), "high": _percent(high), "text": f"rank {ranks(place.ranks)}"}
                own = {"title": title, "mark": "point", "series": spec.defenses[name], "at": model}
                told.append({**own, "x": _percent(place.worst.value), **ends})
    return [{key: value for key, value in row.items() if value is not None} for row in told]


def _row(
    spec: Cross, family: str, line: Line, value: float | None, low: float | None = None, high: float | None = None
) -> dict[str, Any]:
    """A cell, of a family or of the utility that is kept ("")."""
    lacks = (family or UTILITY) in line.missing
    text = MISSING if lacks else "beyond the loss" if not line.within else None
    title = spec.families[family].label if family else _kept(spec)
    place = {"title": title, "mark": "cell", "series": spec.defenses[line.defense], "at": _attack(line)}
    return {**place, "y": _percent(value), "low": _percent(low), "high": _percent(high), "text": text}


def _map(panel: Any, spec: Cross, found: list[Line], family: str, *, names: bool, attacks: bool) -> Any:
    """One panel: a family, or the utility that is kept; returns what its colours are of."""
    from matplotlib.colors import Normalize

    columns = [NO_ATTACK, *spec.attacks, WORST]
    of = {(line.defense, line.attack): line for line in found}
    values = [[_value(of[defense, attack], family) for attack in columns] for defense in spec.defenses]
    shades = [[float("nan") if value is None else value for value in row] for row in values]
    image = panel.imshow(shades, cmap=_MAP, norm=Normalize(0, 100), aspect="auto")
    panel.set_facecolor("#f2f2f2")
    for y, defense in enumerate(spec.defenses):
        for x, attack in enumerate(columns):
            value, line = values[y][x], of[defense, attack]
            text = "?" if value is None else number(value, 0)
            text = text if line.within or value is None else f"({text})"
            dark = value is not None and value < 100 * _DARK
            style = {"ha": "center", "va": "center", "fontsize": 7.5, "color": "white" if dark else look.INK}
            panel.text(x, y, text, **style, weight="bold" if attack == WORST else "normal")
    for edge in (0.5, len(columns) - 1.5):
        panel.axvline(edge, color="white", linewidth=2.5)
    heads = [_attack(of[next(iter(spec.defenses)), attack]) for attack in columns]
    panel.set_xticks(range(len(columns)), heads if attacks else [""] * len(columns), fontsize=7.5)
    panel.tick_params(axis="x", rotation=55)
    for label in panel.get_xticklabels():
        label.set(ha="right", rotation_mode="anchor")
    panel.set_yticks(range(len(spec.defenses)), spec.defenses.values() if names else [""] * len(spec.defenses))
    panel.tick_params(axis="y", labelsize=8)
    panel.tick_params(length=0)
    panel.grid(False)
    for side in ("left", "bottom"):
        panel.spines[side].set_visible(False)
    return image


def _bar(canvas: Any, shades: Any, panels: list[Any]) -> None:
    bar = canvas.colorbar(shades, ax=panels, fraction=0.02, pad=0.01, aspect=40)
    bar.set_label("% defended; % of utility kept", fontsize=8)
    bar.ax.tick_params(labelsize=7.5)
    bar.outline.set_visible(False)


def _orders(canvas: Any, grid: Any, row: int, spec: Cross, of_model: Ranking) -> None:
    """The defenses in order, the first on top: their worst cases, and the means over families."""
    names = in_order(of_model)
    for place, (title, order) in enumerate(_named(of_model).items()):
        panel = canvas.add_subplot(grid[row, _ACROSS * place : _ACROSS * (place + 1)])
        for y, name in enumerate(names):
            of = order.places[name]
            low, high = of.worst.interval or (of.worst.value, of.worst.value)
            colour = look.COLOURS[0]
            panel.plot([_percent(low), _percent(high)], [y, y], color=colour, linewidth=1.6, solid_capstyle="butt")
            panel.plot([_percent(of.worst.value)], [y], "o", color=colour, markersize=5)
            panel.text(103, y, ranks(of.ranks), fontsize=8, va="center", ha="left", color=look.INK, clip_on=False)
        panel.text(103, -0.9, "rank", fontsize=8, va="center", ha="left", color=look.GREY, clip_on=False)
        shown = [spec.defenses[name] for name in names] if place == 0 else [""] * len(names)
        panel.set_yticks(range(len(names)), shown, fontsize=8)
        panel.set_ylim(len(names) - 0.4, -0.6)
        panel.set_xlim(0, 101)
        panel.set_xlabel("% defended", fontsize=8.5)
        panel.tick_params(axis="x", labelsize=8)
        panel.tick_params(axis="y", length=0)
        panel.grid(True, axis="x")
        panel.grid(False, axis="y")
        panel.set_title(title, fontsize=9.5)


def _named(of_model: Ranking) -> dict[str, Order]:
    return {"worst case over all families": of_model.worst, "mean over families of their worst cases": of_model.mean}


def _kept(spec: Cross) -> str:
    return f"utility kept ({spec.utility.label})"


def _attack(line: Line) -> str:
    return line.label if line.kind in ("", "fixed", "adaptive") else f"{line.label}, {line.kind}"


def _value(line: Line, family: str) -> float | None:
    if not family:
        return _percent(line.kept)
    return _percent(line.fields[family].share.value) if family in line.fields else None


def _percent(value: float | None) -> float | None:
    return None if value is None else 100 * value


def _note(spec: Cross, results: Results, found: list[Line]) -> str:
    loss = f"{100 * spec.utility.loss:g} % of {spec.utility.label}"
    counts = {
        family.label: look.span(line.fields[name].share.n for line in found if name in line.fields)
        for name, family in spec.families.items()
    }
    told = [
        f"% defended: 100 as if all were, 0 as if none; in parentheses after attacks that cost more than {loss}",
        "tuned, knowing the defense, worst of all: the worst within that loss, chosen on one half of the records and "
        "read on the other, and the utility of the one of these that leaves least",
        "below: points with 95 % intervals; rank: which it may have (p < 0.05 after Holm's correction), where ranges "
        "meet the order is not significant",
        f"records: {', '.join(f'{label} {count}' for label, count in counts.items())}; {look.seeds(results.cells)}",
    ]
    missing = sum(len(set(line.missing) - {SECONDS}) for line in found)
    every = len(found) * (len(spec.families) + 1)
    return "\n".join(told + ([f"?: {missing} of {every} are missing"] if missing else []))
