"""results/report.html: claims, tables, figures and provenance on one self-contained page.

Figures are embedded, tables come from the Markdown files, nothing is loaded from the network.
"""

from __future__ import annotations

import base64
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bulwark import files
from bulwark.reporting import numbers
from bulwark.reporting.results import ResultsError
from bulwark.reporting.verdicts import READING


def make_report(
    out: Path,
    *,
    title: str,
    studies: Mapping[str, Mapping[str, Any]],
    claims: Path,
    tables: Sequence[Path],
    figures: Sequence[tuple[Path, str]],
    scores: Iterable[Path],
) -> None:
    """Write the page `out`.

    studies: as in the configuration; claims: claims.json; tables: Markdown files of `make_table`; figures: (PNG,
    caption); scores: the scores files behind them, for the provenance. Raises ResultsError naming a
    file that is missing.
    """
    import jinja2

    beside = jinja2.FileSystemLoader(Path(__file__).parent)
    templates = jinja2.Environment(
        loader=beside, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    templates.filters.update(number=number, span=span, seeds_of=seeds_of)
    contents = [json.loads(_text(path)) for path in scores]
    html = templates.get_template("report.html.jinja").render(
        title=title,
        reading=READING,
        claims=json.loads(_text(claims)),
        tables=[{"name": Path(path).stem, "html": _rendered(_text(path))} for path in tables],
        figures=[
            {"name": Path(path).stem, "caption": caption, "data": base64.b64encode(_bytes(path)).decode()}
            for path, caption in figures
        ],
        studies=studies,
        provenance=common_provenance(contents),
        settings=_settings(contents),
        runs=contents,
    )
    files.write_text(Path(out), html)


def common_provenance(contents: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """What the scores have in common, one line per key; if they differ, every value with its count."""
    lines = {"scores files": str(len(contents))}
    for key in ("model", "recipe", "seed"):
        lines[f"{key}s"] = ", ".join(dict.fromkeys(str(content[key]) for content in contents))
    tally: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for content in contents:
        for key, value in _flat(content["provenance"]):
            tally[key][value] += 1
    for key, counts in sorted(tally.items()):
        if len(counts) == 1:
            lines[key] = next(iter(counts))
        elif len(counts) <= 4:
            lines[key] = "; ".join(f"{value} ({count} of {len(contents)})" for value, count in counts.items())
        else:
            lines[key] = f"{len(counts)} different values (see each scores file)"
    return lines


def number(value: float | None) -> str:
    return numbers.number(value, 3)


def span(interval: Sequence[float] | None) -> str:
    return numbers.NONE if interval is None else f"[{number(interval[0])}, {number(interval[1])}]"


def seeds_of(entry: Mapping[str, Any]) -> str:
    several = len(entry["by_seed"]) > 1
    return "By seed: " + ", ".join(number(value) for value in entry["by_seed"].values()) + "." if several else ""


def _settings(contents: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The resolved settings of each benchmark, once per distinct value, with the models they were used for."""
    groups: dict[tuple[str, str], set[str]] = {}
    for content in contents:
        settings = json.dumps(content["provenance"].get("settings", {}), sort_keys=True)
        groups.setdefault((content["benchmark"], settings), set()).add(content["model"])
    return [
        {"benchmark": benchmark, "settings": settings, "models": ", ".join(sorted(models))}
        for (benchmark, settings), models in groups.items()
    ]


def _flat(value: Any, prefix: str = "") -> Iterable[tuple[str, str]]:
    """Nested maps as (dotted key, text) pairs, without the settings, which have their own table."""
    for key, inner in value.items():
        if not prefix and key == "settings":
            continue
        if isinstance(inner, Mapping):
            yield from _flat(inner, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", inner if isinstance(inner, str) else json.dumps(inner)


def _rendered(markdown: str):
    from markdown_it import MarkdownIt
    from markupsafe import Markup

    # Raw HTML stays text: a title or caption cannot bring a script or a request with it.
    return Markup(MarkdownIt("commonmark", {"html": False}).enable("table").disable("image").render(markdown))


def _text(path: Path) -> str:
    return _bytes(path).decode("utf-8")


def _bytes(path: Path) -> bytes:
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        raise ResultsError(f"{path} is missing: the report shows it. Make it with: snakemake {path}") from None
