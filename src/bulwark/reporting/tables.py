"""Tables: rows are (model, recipe), columns are metrics; CSV, Markdown and LaTeX from one frame.

Each metric has the columns value, standard error (over records, clustered over seeds), n, spread over seeds (standard
deviation; where there are several), and the published number with its error and our difference from it (where there is
one for these rows). The best of a model's rows is bold where it differs significantly from each of the others.
A result that is not there is an error, unless it is to be shown as missing: then nothing that depends on it is shown.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bulwark import files
from bulwark.evaluation.comparisons import clearly_best
from bulwark.evaluation.statistics import Sample
from bulwark.reporting import worst_cases
from bulwark.reporting.columns import those_named
from bulwark.reporting.crossed import tables as crossed
from bulwark.reporting.numbers import MISSING, NONE, exact, number, with_error
from bulwark.reporting.results import Cell, Results, ResultsError, read_published
from bulwark.reporting.settings import Average, Column, Figure, Table
from bulwark.settings import validated

if TYPE_CHECKING:
    import pandas as pd  # half a second: figures, which share this module's rows and columns, do without

_PARTS = ("value", "stderr", "n", "seed_sd", "published", "published_stderr")
_OPTIONAL = (".seed_sd", ".published", ".published_stderr", ".difference", ".difference_stderr")
_VALUE = "mean ± SE"
_DIFFERENCE = "ours − published"
_ARROWS = {True: " ↑", False: " ↓", None: ""}
_NOTHING = 1e-9  # a standard error, in percent or less, that rounding has left of 0


def make_table(
    spec: Table | Mapping[str, Any],
    cells: Iterable[Mapping[str, Any]],
    published: Path | None,
    csv: Path,
    markdown: Path,
    latex: Path,
    missing: Iterable[str | Path] = (),
    command: str = Cell.command,
) -> pd.DataFrame:
    """Write the table `spec` over `cells` (maps with model, recipe, seed, benchmark, scores) in three formats.

    published: a file of config/published, or None. missing: scores that are shown as missing. command: that makes a
    file, up to its path. Returns the frame of `table_frame`. Raises ResultsError that names any other file that is
    missing, and the command that makes it.
    """
    table = spec if isinstance(spec, Table) else validated(Table, spec, "the table's settings")
    results = Results(cells, missing, command)
    if table.cross is not None:
        told = crossed.ranking(table.cross, results) if table.ranking else crossed.cross(table.cross, results)
        frame, presented, note, caption = told.frame, told.presented, told.note, table.caption.strip()
        bold = [[False] * presented.shape[1]] * len(presented)  # the order is told by the ranking, with its intervals
    else:
        columns = shown_columns(table.columns, results)
        frame = table_frame(table, results, published)
        presented = presented_frame(table, columns, frame, results)
        caption = caption_of(table, columns, frame)
        elsewhere = "The numbers of records and the spread over seeds are in the CSV file."
        note = reading(table, columns, frame, compact=table.compact, elsewhere=elsewhere)
        bold = _bold(columns, frame, results, presented)
    note = " ".join(filter(None, (note, told_missing(results, command))))
    files.write_text(Path(csv), frame.to_csv(index=False))
    files.write_text(Path(markdown), _markdown(table.title, caption, presented, bold, note))
    files.write_text(Path(latex), _latex(f"{table.title}. {caption} {note}", presented, bold, Path(latex).stem))
    return frame


def table_frame(table: Table, results: Results, published: Path | None) -> pd.DataFrame:
    """One line per (model, recipe): model, recipe, seeds, and per column <benchmark>.<metric>.<part>.

    Parts: value, stderr, n, seed_sd (if any row has several seeds), published, published_stderr, difference and
    difference_stderr (if any row has them; ours minus published), best (whether it is clearly the best of its model, if
    any row is); of attacks also low and high (the interval) and, of a worst case, attack (those chosen, or why there is
    none) and utility_kept (the share of it), of a mean, attacks (how many). Metrics with `percent` are in percent, and
    their columns are named <benchmark>.<metric>_percent.<part>; those on a scale of 0 … k are named
    <benchmark>.<metric>_of_<k>.<part>; those of attacks have their label after the metric. Averages of columns follow
    as <label>.<part>. Where something is missing, the column `missing` names those columns of the row, without the
    part.
    """
    numbers = read_published(published)
    columns = shown_columns(table.columns, results)
    lines = []
    samples: dict[tuple[str, str], dict[str, Sample | None]] = {}  # by model and column, of each row
    for model, recipe in product(*shown_rows(table, results)):
        line: dict[str, Any] = {"model": model, "recipe": recipe}
        gone = []
        for column in columns:
            printed = numbers.get(column.printed_as(model, recipe), (None, None))
            if worst_cases.lacks(results, model, recipe, column):
                gone.append(column_name(column, ""))
                line |= {column_name(column, part): None for part in _PARTS}
                continue
            if column.case is not None:
                found = worst_cases.of(results, model, recipe, column, column.case)
                line |= _attacked(column, found, printed)
                samples.setdefault((model, column_name(column, "")), {})[recipe] = found.sample
                continue
            seeds = list(results.seeds(model, recipe, column.benchmark))
            if line.setdefault("seeds", seeds) != seeds:
                raise ResultsError(
                    f"{model}, {recipe}: {column.benchmark} was measured at the seeds {seeds}, the benchmark before it "
                    f"at {line['seeds']}. Measure both at the same seeds: results/scores/{model}/{recipe}/seed…/"
                )
            sample = results.sample(model, recipe, column.benchmark, column.metric)
            samples.setdefault((model, column_name(column, "")), {})[recipe] = sample
            estimate = results.estimate(model, recipe, column.benchmark, column.metric)
            parts = (estimate.value, estimate.stderr, estimate.n, estimate.seed_spread, *printed)
            for part, value in zip(_PARTS, parts, strict=True):
                line[column_name(column, part)] = value if part == "n" or value is None else exact(value) * column.scale
        line["seeds"] = " ".join(map(str, line.get("seeds") or sorted({cell.seed for cell in results.cells})))
        for average in table.averages:
            line |= _averaged(average, columns, line, numbers.get((model, recipe, "average", average.label)))
            if {column_name(column, "") for column in members(average, columns)} & set(gone):
                gone.append(f"{average.label}.")
        keys = [*(column_name(column, "") for column in columns), *(f"{average.label}." for average in table.averages)]
        for key in keys:
            line |= _difference(line, key)
        lines.append(line | {"missing": ", ".join(name.removesuffix(".") for name in gone)})
    for column in columns:
        key = column_name(column, "")
        of_models = {
            model: _best(direction(column, results), samples.get((model, key), {})) for model in results.models
        }
        if any(of_models.values()):
            for line in lines:
                line[f"{key}best"] = line["recipe"] == of_models[line["model"]]
    import pandas as pd

    frame = pd.DataFrame(lines)
    optional = frame.columns[frame.columns.str.endswith(_OPTIONAL)]
    unused = [name for name in optional if frame[name].isna().all()]
    return frame.drop(columns=unused if frame["missing"].any() else [*unused, "missing"])


def presented_frame(table: Table, columns: list[Column], frame: pd.DataFrame, results: Results) -> pd.DataFrame:
    """The frame as text, under two-level headings: (label and direction of the metric, part)."""
    presented: dict[tuple[str, str], list[str]] = {
        ("", "model"): list(frame["model"]),
        ("", "recipe"): [table.label(recipe) for recipe in frame["recipe"]],
        ("", "seeds"): list(frame["seeds"].str.replace(" ", ", ")),
    }
    shown = [(column, column_name(column, ""), column.label, "published") for column in columns]
    for average in table.averages:
        if len(of := members(average, columns)) > 1:
            label = label_of(average, of)
            printed = "published" if label == average.label else f"published, of {len(average.of)}"
            shown.append((of[0], f"{average.label}.", label, printed))
    for column, key, label, published in shown:
        heading = heading_of(column, label, results)
        digits = column.places

        gone = [key.removesuffix(".") in names.split(", ") for names in frame.get("missing", [""] * len(frame))]

        def both(value: str, error: str, key: str = key, digits: int = digits, signed: bool = False) -> list[str]:
            errors = frame.get(key + error, [None] * len(frame))
            return [with_error(*pair, digits, signed) for pair in zip(frame[key + value], errors, strict=True)]

        presented[heading, _VALUE] = [
            MISSING if lacks else told for lacks, told in zip(gone, both("value", "stderr"), strict=True)
        ]
        if not table.compact and key + "n" in frame:
            presented[heading, "n"] = [number(n, 0) for n in frame[key + "n"]]
        if not table.compact and key + "seed_sd" in frame:
            presented[heading, "SD over seeds"] = [number(sd, digits) for sd in frame[key + "seed_sd"]]
        if key + "attack" in frame:
            presented[heading, "attack"] = [NONE if told is None else told for told in frame[key + "attack"]]
        if key + "published" in frame:
            presented[heading, published] = both("published", "published_stderr")
        if key + "difference" in frame:
            presented[heading, _DIFFERENCE] = both("difference", "difference_stderr", signed=True)
    import pandas as pd

    return pd.DataFrame(presented)


def _difference(line: Mapping[str, Any], key: str) -> dict[str, float | None]:
    """How far a row's number is above the published one, with the errors of both as far as they are known."""
    value, printed = line.get(key + "value"), line.get(key + "published")
    if value is None or printed is None:
        return {f"{key}difference": None, f"{key}difference_stderr": None}
    own, theirs = line.get(key + "stderr"), line.get(key + "published_stderr")
    stderr = None if own is None else math.hypot(own, theirs or 0.0)
    return {f"{key}difference": value - printed, f"{key}difference_stderr": stderr}


def _best(arrow: str, of_rows: Mapping[str, Sample | None]) -> str | None:
    """The recipe that is clearly the best of a model's rows, by the column's arrow.

    None where there is no better way, or a row has no values per record.
    """
    known = {recipe: sample for recipe, sample in of_rows.items() if sample is not None}
    return clearly_best(known, higher=arrow == _ARROWS[True]) if arrow and len(known) == len(of_rows) else None


def _bold(columns: list[Column], frame: pd.DataFrame, results: Results, presented: pd.DataFrame) -> list[list[bool]]:
    """Which fields of what is presented are bold, line by line."""
    best = {
        (heading_of(column, column.label, results), _VALUE): column_name(column, "best")
        for column in columns
        if column_name(column, "best") in frame
    }
    return [
        [heading in best and bool(line[best[heading]]) for heading in presented.columns]
        for line in frame.to_dict("records")
    ]


def heading_of(column: Column, label: str, results: Results) -> str:
    """Label, unit and direction of a column, or of an average of such columns."""
    unit = f" (0 to {column.out_of})" if column.out_of else " (%)" if column.percent else ""
    return f"{label}{unit}{direction(column, results)}"


def _attacked(column: Column, found: worst_cases.Found, printed: tuple[float | None, float | None]) -> dict[str, Any]:
    """The parts of a worst case or a mean of attacks in a row."""
    of, (low, high) = found.estimate, found.estimate.interval or (None, None)
    scaled = {"value": of.value, "stderr": of.stderr, "low": low, "high": high, "seed_sd": of.seed_spread}
    scaled |= {"published": printed[0], "published_stderr": printed[1]}
    parts = {part: None if value is None else exact(value) * column.scale for part, value in scaled.items()}
    parts |= {"n": of.n, "attack": found.chosen, "utility_kept": found.kept}
    if column.average:
        parts |= {"attacks": len(found.attacks)}
        del parts["attack"], parts["utility_kept"]
    return {column_name(column, part): value for part, value in parts.items()}


def members(average: Average, columns: Iterable[Column]) -> list[Column]:
    """The shown columns of an average."""
    return [column for column in columns if column.label in average.of]


def label_of(average: Average, of: list[Column]) -> str:
    """An average's label, with how many columns it is of if some are not shown: the paper's is then of others, too."""
    return average.label if len(of) == len(average.of) else f"{average.label} of {len(of)}"


def _averaged(
    average: Average, columns: list[Column], line: Mapping[str, Any], printed: tuple[float, float | None] | None
) -> dict[str, float | None]:
    """An average in a row: value, standard error (the data sets are independent), published.

    The published average is the printed one, or else the mean of the published numbers of all columns.
    """
    of = members(average, columns)
    if len(of) < 2:
        return {}
    values, errors, published = (
        [line[column_name(column, part)] for column in of] for part in ("value", "stderr", "published")
    )
    stated = _mean(published) if len(of) == len(average.of) else None
    if printed:
        stated = printed[0] * of[0].scale
    stderr = None if None in errors else sum(error**2 for error in errors) ** 0.5 / len(errors)
    parts = {"value": _mean(values), "stderr": stderr, "published": stated}
    return {f"{average.label}.{part}": value for part, value in parts.items()}


def _mean(values: list[float | None]) -> float | None:
    return None if None in values else sum(values) / len(values)


def shown_columns(columns: Iterable[Column], results: Results) -> list[Column]:
    """The columns without those marked `if_measured` whose benchmark the study does not measure."""
    return [column for column in columns if not column.if_measured or column.benchmark in results.benchmarks]


def direction(column: Column, results: Results) -> str:
    """The better direction, after a metric's label: " ↑" or " ↓"; "" for a metric without one."""
    own = results.higher_is_better(column.benchmark, column.metric)
    return _ARROWS[own if column.better is None else column.better == "higher"]


def shown_rows(spec: Table | Figure, results: Results) -> tuple[list[str], list[str]]:
    """The models, and the recipes of each, in order: those of `spec.rows`, or all. Raises ResultsError for none."""
    if not results.cells:
        raise ResultsError(f'"{spec.title}": the study "{spec.study}" has no results to show.')
    return results.models, those_named(spec.rows, results.recipes)


def column_name(column: Column, part: str) -> str:
    """The name of a part of a metric in the frame of `table_frame`."""
    scale = f"_of_{column.out_of}" if column.out_of else "_percent" if column.percent else ""
    label = f" ({column.label})" if column.case else ""
    return f"{column.benchmark}.{column.metric}{label}{scale}.{part}"


def caption_of(table: Table, columns: Iterable[Column], frame: pd.DataFrame) -> str:
    """The table's caption with the notes on what is in it."""
    return table.described(columns, frame["recipe"], has_published(frame))


def has_published(frame: pd.DataFrame) -> bool:
    """Whether a frame of `table_frame` has a published number."""
    return _has(frame, ".published")


def reading(table: Table, columns: list[Column], frame: pd.DataFrame, *, compact: bool, elsewhere: str) -> str:
    """How the numbers are to be read: what stands after ±, what an average is of, what is published.

    compact: n and the spread over seeds are not shown; elsewhere: where they are.
    """
    several = frame["seeds"].str.contains(" ").any()
    errors = frame.filter(regex=r"\.stderr$").notna().to_numpy().any()
    means = "Means over seeds" if several else "Values"
    clustered = ", a record with its seeds being one cluster" if several else ""
    spread = f" ± one standard error over records{clustered}; 95 % intervals reach about twice as far" if errors else ""
    sentences = [f"{means}{spread}."]
    shown_errors = frame.filter(regex=r"\.stderr$").to_numpy(dtype=float)
    if (shown_errors < _NOTHING).any():
        sentences.append("± 0: all records agree; the interval is wider than that.")
    for average in table.averages:
        if len(of := members(average, columns)) > 1:
            sentences.append(f"{label_of(average, of)}: mean of {', '.join(column.label for column in of)}.")
    sentences += worst_cases.reading(columns)
    if compact:
        sentences.append(elsewhere)
    else:
        sentences.append("n: records that count.")
        if _has(frame, ".seed_sd"):
            sentences.append("SD over seeds: standard deviation of the seeds' values.")
    if has_published(frame):
        sentences.append("Published: the paper's number beside ours; the difference has the errors that are known.")
    if _has(frame, ".best"):
        sentences.append(BEST)
    return " ".join(sentences)


BEST = (
    "Bold: the best of a model's rows if each of the others differs from it, p < 0.05 in a paired test over records, "
    "each with its seeds; every metric by itself."
)


def told_missing(results: Results, command: str) -> str:
    """Which results are shown as missing, and the command that makes the first of them; "" if none is."""
    gone = [cell.scores for cell in results.cells if cell.scores in results.missing]
    if not gone:
        return ""
    return (
        f"Missing: {len(gone)} of {len(results.cells)} results have not been made, and what depends on them is not "
        f"shown. The first is made by `{command} {gone[0]}`, all by asking for this table without partial=true."
    )


def _has(frame: pd.DataFrame, ending: str) -> bool:
    return any(name.endswith(ending) for name in frame.columns)


def _markdown(title: str, caption: str, presented: pd.DataFrame, bold: list[list[bool]], note: str) -> str:
    headings = [top if part in (_VALUE, "") else part for top, part in presented.columns]
    shown = _marked(presented.to_numpy().tolist(), bold, "**{}**")
    lines = [headings, ["---"] * 3 + ["---:"] * (len(headings) - 3), *shown]
    body = "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)
    return "\n\n".join(part for part in (f"# {title}", caption, body, note) if part) + "\n"


def _marked(fields: list[list[str]], bold: list[list[bool]], mark: str) -> list[list[str]]:
    """The fields, those that are bold in the mark."""
    pairs = (zip(*both, strict=True) for both in zip(fields, bold, strict=True))
    return [[mark.format(text) if heavy else text for text, heavy in line] for line in pairs]


def _latex(caption: str, presented: pd.DataFrame, bold: list[list[bool]], label: str) -> str:
    import pandas as pd

    escaped = pd.DataFrame(_marked(presented.map(_escaped).to_numpy().tolist(), bold, r"\textbf{{{}}}"))
    escaped.columns = pd.MultiIndex.from_tuples([tuple(map(_escaped, pair)) for pair in presented.columns])
    return escaped.style.hide(axis="index").to_latex(
        hrules=True,
        column_format="lll" + "r" * (presented.shape[1] - 3),
        multicol_align="c",
        position="t",
        position_float="centering",
        caption=_escaped(" ".join(caption.split())),
        label=f"tab:{label}",
    )


_LATEX = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "\\": "\\textbackslash{}",
    "~": "\\textasciitilde{}",
    "^": "\\textasciicircum{}",
    "±": "$\\pm$",
    "↑": "$\\uparrow$",
    "↓": "$\\downarrow$",
    "≤": "$\\le$",
    "≥": "$\\ge$",
    "–": "--",
    "−": "$-$",
}


def _escaped(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in str(text))
