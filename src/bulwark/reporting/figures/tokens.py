"""Tokens: the text of one prompt, each token coloured by its activation, a panel per recipe (ASIDE, Sec. 6.2).

Colours go from blue (as data) over white to red (as an instruction); a panel's are relative to its largest activation,
because every checkpoint has its own probe. One part, SEP's probe, is underlined.
"""

from __future__ import annotations

from itertools import product
from typing import Any

from bulwark.reporting.figures import look
from bulwark.reporting.results import Cell, Results, ResultsError
from bulwark.reporting.settings import Figure
from bulwark.reporting.tables import shown_rows

_WIDTH = 9.0  # of the figure, in inches
_LINE = 0.3  # of a line of text, in inches
_LETTERS = 92  # of a line
_SIZE = 8.5  # of the letters, in points
_DARK = -0.55  # of the scale: blue from which letters are white


def draw(figure: Figure, results: Results, printed: dict) -> Any:
    """The canvas. Raises ResultsError if there is no such record."""
    import matplotlib
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    spec = figure.tokens
    rows = list(product(*shown_rows(figure, results)))
    # One seed: the others have the same prompts.
    cells = [next(iter(results.seeds(*row, spec.benchmark).values())) for row in rows]
    laid = [_laid_out(_tokens(cell, spec.record)) for cell in cells]
    lines = [max(line for _, _, line, _ in tokens) + 1 for tokens in laid]
    height = sum(lines) * _LINE + len(rows) * 0.45 + 0.4
    canvas, panels = look.panels(len(rows), 1, _WIDTH, height)
    canvas.get_layout_engine().set(h_pad=0.02)
    colours = matplotlib.colormaps["bwr"]
    for panel, (model, recipe), tokens, count in zip(panels.flat, rows, laid, lines, strict=True):
        most = max(abs(value) for *_, value in tokens) or 1.0
        panel.set(xlim=(-0.5, _LETTERS + 1), ylim=(count, 0))
        panel.axis("off")
        for text, part, line, value in tokens:
            ink = "white" if value / most < _DARK else look.INK
            _write(panel, text, line, colours(0.5 + 0.5 * value / most), ink, part in spec.underlined)
        name = figure.label(recipe)
        several = len({one for one, _ in rows}) > 1
        panel.set_title(f"{model}, {name}" if several else name, fontsize=9.5, loc="left")
    bar = canvas.colorbar(ScalarMappable(Normalize(-1, 1), colours), ax=list(panels.flat), fraction=0.02, aspect=30)
    bar.set_label("activation / largest of the panel", fontsize=8)
    bar.ax.tick_params(labelsize=7.5)
    note = f"record {cells[0].rows[spec.record]['id']}; seed {cells[0].seed}; red: as an instruction, blue: as data"
    note += "".join(f"; underlined: {label}" for label in spec.underlined.values())
    look.foot(canvas, note)
    return canvas


def rows(figure: Figure, results: Results) -> list[dict[str, Any]]:
    """The tokens in their order, each with its part and its activation, of which its colour is a share."""
    spec = figure.tokens
    found = []
    for number, (model, recipe) in enumerate(product(*shown_rows(figure, results)), start=1):
        cell = next(iter(results.seeds(model, recipe, spec.benchmark).values()))
        panel = {"panel": number, "title": f"{model}, {figure.label(recipe)}", "mark": "token"}
        panel |= {"x_axis": "token", "y_axis": "activation"}
        found += [
            {**panel, "series": part, "x": place, "y": float(value), "text": text}
            for place, (text, part, value) in enumerate(_tokens(cell, spec.record))
        ]
    return found


def _tokens(cell: Cell, record: int) -> list[tuple[str, str, float]]:
    """The tokens of a record as (text, part, activation). Raises ResultsError if there is no such record."""
    if record >= len(cell.rows):
        raise ResultsError(
            f"{cell.scores} has {len(cell.rows)} records; record {record} is asked for, counting from 0."
        )
    return [tuple(token) for token in cell.rows[record]["tokens"]]


def _laid_out(tokens: list[tuple[str, str, float]]) -> list[tuple[tuple[str, int], str, int, float]]:
    """Each token as ((text, column), part, line, activation), wrapped; the data begin a line of their own."""
    laid, line, column, before = [], 0, 0, tokens[0][1] if tokens else ""
    for text, part, value in tokens:
        shown = text.replace("\n", "⏎") or "·"
        begins = before == "instruction" and part != "instruction"
        if begins or column + len(shown) > _LETTERS:
            line, column = line + 1, 0
        laid.append(((shown, column), part, line, value))
        column += len(shown) + (0 if shown.startswith(" ") else 1)
        before = part
    return laid


def _write(panel, text: tuple[str, int], line: int, colour: Any, ink: str, underlined: bool) -> None:
    """One token as a coloured field with its text."""
    from matplotlib.patches import Rectangle

    shown, column = text
    width = len(shown)
    panel.add_patch(
        Rectangle((column - 0.3, line + 0.08), width + 0.6, 0.84, facecolor=colour, edgecolor="#cccccc", linewidth=0.4)
    )
    style = {"family": "monospace", "fontsize": _SIZE, "color": ink, "va": "center", "ha": "center"}
    panel.text(column + width / 2, line + 0.5, shown.strip() or "␣", **style)
    if underlined:
        panel.plot([column - 0.3, column + width + 0.3], [line + 0.95] * 2, color=look.INK, linewidth=1.4)
