"""report.html: the verdicts first, then figures and tables, on one page that holds everything and asks for nothing.

What is on it is one configuration's. A number opens a sheet that says where it comes from; a few records of every
benchmark stand with what the recipes answered. What models and files wrote is untrusted: every value is escaped, its
characters that cannot be seen are named (`page.untrusted`), and the page's policy lets nothing be loaded and nothing
run but its own script and style, whose digests it names. Without the script, which filters, everything is shown.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bulwark import files
from bulwark.reporting import numbers, verdicts
from bulwark.reporting.grids import grid
from bulwark.reporting.origins import Origins, Sheet
from bulwark.reporting.page import examples, tree, untrusted
from bulwark.reporting.results import Results, ResultsError

_COUNTS = ("truncated_prompts", "answers_at_length_limit", "empty_answers", "failed_judgements")
_OWN = {"style": "css", "script": "js"}  # what the page's policy lets run
_POLICY = (
    "default-src 'none'; img-src data:; style-src '{style}'; script-src '{script}'; base-uri 'none'; form-action 'none'"
)


def make_report(
    out: Path,
    *,
    name: str,
    studies: Sequence[Mapping[str, Any]],
    toys: Sequence[str],
    claims: Path,
    columns: Mapping[str, verdicts.Columns],
    tables: Mapping[str, Mapping[str, Any]],
    published: Mapping[str, Path],
    figures: Mapping[str, Mapping[str, Any]],
    cells: Iterable[Mapping[str, Any]],
) -> None:
    """Write the page `out` of the configuration `name`.

    studies: of those that run something name, description, models, recipes, seeds, benchmarks, the names of their
    tables and figures, `every_recipe`, `chains` (the same, trials as one) and `examples` (what `page.examples.group`
    is given). toys: the models that stand for no real one. claims: claims.json; columns: how tables show what the
    claims measure. tables: {name: {spec, cells}}; published: files of config/published by name. figures: {name: {png:
    of `make_figure`, benchmarks}}. cells: everything measured. Raises ResultsError naming a file that is missing.
    """
    import jinja2
    import markupsafe

    results = Results(cells)
    origins = Origins(results)
    checked = [_claim(claim, columns.get(claim["id"], {}), origins) for claim in json.loads(_bytes(claims))]
    grids = {
        table: grid(table, given["spec"], given["cells"], published.get(given["spec"]["published"]), origins.of)
        for table, given in tables.items()
    }
    sheets = origins.sheets()
    beside = Path(__file__).parent
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader([beside, beside / "page"]),
        autoescape=True,
        finalize=untrusted.finalize,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    own = {kind: (beside / f"report.{ending}").read_text(encoding="utf-8") for kind, ending in _OWN.items()}
    html = templates.get_template("report.html.jinja").render(
        name=name,
        policy=_POLICY.format(**{kind: _digest(text) for kind, text in own.items()}),
        **{kind: markupsafe.Markup(text) for kind, text in own.items()},
        models=results.models,
        recipes=results.recipes,
        benchmarks=results.benchmarks,
        toys=[model for model in toys if model in results.models],
        claims=checked,
        verdicts=Counter(claim["verdict"] for claim in checked),
        reading=verdicts.READING,
        studies=[
            {
                **study,
                "drawing": tree.drawing(study["chains"]),
                "examples": [examples.group(given, origins.known) for given in study["examples"]],
            }
            for study in studies
        ],
        tables=grids,
        figures={
            figure: _picture(Path(given["png"])) | {"benchmarks": given["benchmarks"]}
            for figure, given in figures.items()
        },
        origins=sheets,
        settings=_numbered(sheets),
        counts=_COUNTS,
        runs=[cell.content for cell in results.cells],
    )
    files.write_text(Path(out), html)


def _claim(claim: Mapping[str, Any], columns: verdicts.Columns, origins: Origins) -> dict[str, Any]:
    """A claim in words; the values of a condition with the sheets on where they come from."""
    shown = []
    for model, entries in verdicts.conditions(claim, columns):
        for condition, entry in zip(claim["conditions"], entries, strict=True):
            terms = next(value for value in condition.values() if isinstance(value, Mapping))
            recipes = [terms[key] for key in ("recipe", "than") if key in terms]
            measured = (terms["benchmark"], terms["metric"])
            attacked = terms.get("worst_case") or terms.get("average")
            sheets = ["" if attacked else origins.of(model, recipe, *measured) for recipe in recipes]
            values = [(*pair, sheet) for pair, sheet in zip(entry.values, sheets, strict=True)]
            shown.append({"model": model, "entry": entry, "values": values})
    return {
        **{key: claim[key] for key in ("id", "statement", "source", "verdict", "seeds")},
        "p_corrected": numbers.p_value(claim.get("p_corrected")),
        "confidence": f"{100 * claim['confidence']:g} %",
        "headline": verdicts.headline(claim, columns),
        "several": len(claim["models"]) > 1,
        "conditions": shown,
        **_about(claim),
        "not_measured": verdicts.not_measured(claim, columns),
    }


def _about(claim: Mapping[str, Any]) -> dict[str, list[str]]:
    """Which models, recipes and benchmarks a claim is about, for the filter."""
    terms = [value for condition in claim["conditions"] for value in condition.values() if isinstance(value, Mapping)]
    recipes = [term[key] for term in terms for key in ("recipe", "than") if key in term]
    return {
        "models": list(claim["models"]),
        "recipes": list(dict.fromkeys(recipes)),
        "benchmarks": list(dict.fromkeys(term["benchmark"] for term in terms)),
    }


def _digest(text: str) -> str:
    """What a policy calls a script or style of this text."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _numbered(sheets: Iterable[Sheet]) -> dict[str, str]:
    """{settings: the id under which they stand on the page}, once each: many sheets have the same."""
    distinct = dict.fromkeys(sheet.settings for sheet in sheets if sheet.settings)
    return {settings: f"settings-{number}" for number, settings in enumerate(distinct)}


def _picture(path: Path) -> dict[str, Any]:
    """A figure's data, title, caption (both in the file itself) and width in inches."""
    import io

    from PIL import Image

    data = _bytes(path)
    with Image.open(io.BytesIO(data)) as picture:
        told = dict(picture.info)
        width = picture.width / told.get("dpi", (200, 200))[0]
    return {
        "data": base64.b64encode(data).decode(),
        "title": told.get("Title", path.stem),
        "caption": told.get("Description", ""),
        "inches": round(width, 1),
    }


def _bytes(path: Path) -> bytes:
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        raise ResultsError(f"{path} is missing: the report shows it. Make it with: snakemake {path}") from None
