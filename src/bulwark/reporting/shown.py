"""What has been measured, in a terminal: scores and analyses of any checkpoint, listed by a configuration or not.

Rates are as in the scores files, from 0 to 1.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bulwark import files, seals
from bulwark.errors import nearest
from bulwark.reporting.numbers import NONE, number, with_error
from bulwark.reporting.origins import facts
from bulwark.reporting.results import Cell, ResultsError

if TYPE_CHECKING:
    from rich.console import Console

_SHOWN = ("files", "decoding", "judge", "counts", "commit")
_RESULTS = Path("results")


def show(paths: Sequence[Path], console: Console) -> None:
    """Print the measurements at `paths` (see `measured_at`), and the settings of trials; of a few measurements also how
    they were made. For no path, all.
    """
    cells = [cell for path in paths or [_RESULTS] for cell in measured_at(path)]
    if len(cells) > 12:
        console.print(_table(cells), markup=False)
        for line in _trials(cells):
            console.print(line, markup=False, highlight=False, soft_wrap=True)
        return
    for cell in cells:
        console.print(_table([cell]), markup=False)
        for line in _trials([cell]):
            console.print(f"  {line}", markup=False, highlight=False, soft_wrap=True)
        for what, by_seed in facts({cell.seed: cell}):
            if what in _SHOWN and by_seed[cell.seed]:
                console.print(f"  {what}: {by_seed[cell.seed]}", markup=False, highlight=False)
        console.print()


def measured_at(path: Path) -> list[Cell]:
    """The measurements at a path: a scores file, a checkpoint or its folder, or a folder of scores.

    Raises ResultsError for a path that does not exist, with the nearest one, and where nothing was measured.
    """
    path = Path(path)
    if not path.exists():
        raise ResultsError(
            f"{path} does not exist.{_meant(path)} To make it: snakemake -c2 -- {path}, with --configfile before the "
            "-- if an overlay defines what it names."
        )
    if path.is_file() and path.name != "checkpoint.json":
        return [_cell(path)]
    found = [file for folder in _folders(path) for file in sorted(_json_below(folder))]
    cells = [_cell(file) for file in found if not file.name.endswith(seals.ENDING)]
    if not cells:
        raise ResultsError(
            f"{path}: nothing has been measured of it. Ask for a benchmark's scores, for example: "
            f"snakemake -c2 -- {_example(path)}"
        )
    return cells


def _folders(path: Path) -> list[Path]:
    """The folders with what was measured of a checkpoint, or the folder itself."""
    folder = path.parent if path.is_file() else path
    if "checkpoints" in folder.parts:
        at = len(folder.parts) - 1 - folder.parts[::-1].index("checkpoints")
        stages = [Path(*folder.parts[:at], stage, *folder.parts[at + 1 :]) for stage in ("scores", "analyses")]
        return [stage for stage in stages if stage.is_dir()]
    inside = [folder / stage for stage in ("scores", "analyses") if (folder / stage).is_dir()]
    return inside or [folder]


def _meant(path: Path) -> str:
    """The name that is nearest to the first one of a path that is not there."""
    wrong = next(place for place in [*reversed(path.parents), path] if not place.exists())
    return nearest(wrong.name, [other.name for other in wrong.parent.iterdir()] if wrong.parent.is_dir() else [])


def _json_below(folder: Path) -> list[Path]:
    return [Path(place, name) for place, _, names in files.walk(folder) for name in names if name.endswith(".json")]


def _example(path: Path) -> str:
    model, recipe, seed = ("<model>", "<recipe>", "seed0")
    if "checkpoints" in path.parts:
        model, recipe, seed, *_ = (*path.parts[path.parts.index("checkpoints") + 1 :], model, recipe, seed)[:3]
    return f"results/scores/{model}/{recipe}/{seed}/<benchmark>.json"


def _cell(path: Path) -> Cell:
    """The measurement in a file. Raises ResultsError if it is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        identity = {key: content[key] for key in ("model", "recipe", "seed", "benchmark")}
        dict(content["metrics"])
    except (ValueError, KeyError, TypeError):
        raise ResultsError(
            f"{path} is no scores file: give results/scores/<model>/<recipe>/seed<n>/… or a checkpoint."
        ) from None
    return Cell(**identity, scores=path)


def _table(cells: Sequence[Cell]) -> Any:
    """A row per metric; the title says whose they are if it is one measurement, else every row does."""
    from rich.table import Table

    table = Table(title=_name(cells[0]) if len(cells) == 1 else None, title_justify="left")
    for heading in ("metric", "value ± SE", "95 % interval", "n", "better"):
        table.add_column(heading, overflow="fold")
    for cell in cells:
        for name, metric in cell.content["metrics"].items():
            interval = metric["interval"]
            table.add_row(
                name if len(cells) == 1 else f"{_name(cell)}: {name}",
                with_error(metric["value"], metric["stderr"], 4),
                f"{number(interval[0], 4)} to {number(interval[1], 4)}" if interval else NONE,
                str(metric.get("n", cell.content["n"])),
                {True: "higher", False: "lower", None: ""}[metric["higher_is_better"]],
            )
    return table


def _trials(cells: Sequence[Cell]) -> list[str]:
    """What each trial among them varies, and how, as its checkpoint's manifest has it; a line per recipe.

    Of the best of trials also which it is, a line per seed, since each chooses for itself.
    """
    told: dict[str, None] = {}
    for cell in cells:
        stages = [stage for stage in ("scores", "analyses") if stage in cell.scores.parts]
        if not stages:
            continue
        parts = cell.scores.parts
        at = len(parts) - 1 - parts[::-1].index(stages[0])
        manifest = Path(*parts[:at], "checkpoints", *parts[at + 1 : -1], "checkpoint.json")
        known = json.loads(manifest.read_text(encoding="utf-8")) if manifest.is_file() else {}
        if varied := known.get("trial"):
            settings = ", ".join(f"{key} {json.dumps(value)}" for key, value in varied.items())
            whose = f"{cell.model}/{cell.recipe}" + (f"/seed{cell.seed}" if "chosen" in known else "")
            told[f"{whose}, {_which(known)}: {settings}"] = None
    return list(told)


def _which(manifest: Mapping[str, Any]) -> str:
    """Which trial a checkpoint is: "trial" of one whose name says it, else that which was chosen, and by which loss."""
    if (chosen := manifest.get("chosen")) is None:
        return "trial"
    among = len(chosen["losses"]) + len(chosen["left_out"])
    return f"{chosen['trial']}, the best of {among} by its validation loss of {number(chosen['validation_loss'], 4)}"


def _name(cell: Cell) -> str:
    return f"{cell.model}/{cell.recipe}/seed{cell.seed} {cell.benchmark}"
