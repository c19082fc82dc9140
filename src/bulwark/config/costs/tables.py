"""A plan as `bulwark plan` prints it."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Sequence
from typing import get_args

from rich.console import Console
from rich.table import Table

from bulwark.config.catalogue import Catalogue
from bulwark.config.costs import first, storage
from bulwark.config.costs.estimates import Origin
from bulwark.config.costs.graph import REPORTS, STAGES, Job, makers, of_study, reached
from bulwark.config.costs.schedule import Schedule, schedule, unit_of

_ORDER = [*dict.fromkeys(STAGES.values()), REPORTS]
NO_STUDY = "(no study)"
_LINE = 98


def show(catalogue: Catalogue, jobs: Sequence[Job], devices: int, console: Console) -> None:
    """Print all tables. Raises BulwarkError if a job needs more GPUs than `devices`."""
    if not jobs:
        console.print("Nothing is left to do.")
        return
    planned = schedule(jobs, devices)
    device = "GPU" if planned.unit == "GPUs" else "core"
    owner, alone = _studies(catalogue, jobs)
    table = _table("by study", "study", device, "alone")
    for name in [*catalogue.studies, NO_STUDY]:
        places = [place for place, study in enumerate(owner) if study == name]
        if places or name in alone:
            needed = alone.get(name)
            _row(table, name, [jobs[place] for place in places], device, _number(_hours(needed or (), device)))
    _total(table, jobs, device, "")
    console.print(table)
    console.print("  A job that several studies need stands with the first; alone: what a study takes by itself.\n")
    for title, key, order in (
        ("by model", lambda job: job.model or "-", sorted({job.model or "-" for job in jobs})),
        ("by stage", lambda job: job.stage, _ORDER),
    ):
        _by(title, key, order, jobs, device, console)
    _time(jobs, planned, console)
    _disk(storage.disk(catalogue, jobs, planned), console)
    _downloads(storage.downloads(catalogue, jobs), console)
    _judges(storage.judges(catalogue, jobs), console)
    _crowded(storage.crowded(catalogue, jobs), console)
    _first(catalogue, jobs, first.first(catalogue, jobs), device, console)


def summary(catalogue: Catalogue, jobs: Sequence[Job]) -> str:
    """What a dry run says at its end, in lines of which all but the first are indented."""
    device = "GPU" if unit_of(jobs) == "GPUs" else "core"
    owner, _ = _studies(catalogue, jobs)
    lines = [f"{len(jobs):,} jobs, {_number(_hours(jobs, device))} {device} hours:"]
    for name in [*catalogue.studies, NO_STUDY]:
        mine = [jobs[place] for place, study in enumerate(owner) if study == name]
        if mine:
            lines.append(f"{name:<24} {len(mine):>7,} jobs {_number(_hours(mine, device)):>9} {device} hours")
    return "\n  ".join(lines)


def _studies(catalogue: Catalogue, jobs: Sequence[Job]) -> tuple[list[str], dict[str, list[Job]]]:
    """Of each job the first study that needs it; of each study the jobs that it needs, whoever else does."""
    made_by = makers(jobs)
    owner = [NO_STUDY] * len(jobs)
    alone: dict[str, list[Job]] = {}
    for name in catalogue.studies:
        needed = reached(jobs, of_study(catalogue, name, made_by))
        if needed:
            alone[name] = [jobs[place] for place in sorted(needed)]
        for place in needed:
            owner[place] = name if owner[place] == NO_STUDY else owner[place]
    return owner, alone


# --- tables of jobs and hours ---


def _table(title: str, first_column: str, device: str, *more: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column(first_column)
    for name in ("jobs", f"{device} hours", *more, "measured", "published", "guessed"):
        table.add_column(name, justify="right")
    return table


def _row(table: Table, name: str, jobs: Sequence[Job], device: str, *more: str) -> None:
    hours = _hours(jobs, device)
    known = [_share(_hours([job for job in jobs if job.time.origin == origin], device), hours) for origin in _origins()]
    table.add_row(name, f"{len(jobs):,}", _number(hours), *more, *known)


def _total(table: Table, jobs: Sequence[Job], device: str, *more: str) -> None:
    table.add_section()
    _row(table, "all", jobs, device, *more)


def _by(
    title: str,
    key: Callable[[Job], str],
    order: Iterable[str],
    jobs: Sequence[Job],
    device: str,
    console: Console,
) -> None:
    table = _table(title, title.removeprefix("by "), device)
    for name in order:
        if mine := [job for job in jobs if key(job) == name]:
            _row(table, name, mine, device)
    _total(table, jobs, device)
    console.print(table)
    console.print()


def _hours(jobs: Iterable[Job], device: str) -> float:
    return sum(job.time.hours * (job.gpus if device == "GPU" else job.threads) for job in jobs)


def _origins() -> tuple[Origin, ...]:
    return get_args(Origin)


def _share(part: float, whole: float) -> str:
    return f"{100 * part / whole:.0f} %" if part else "-"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:,.1f}" if value >= 1 or not value else f"{value:,.2g}"


def _bytes(size: float | None) -> str:
    if size is None:
        return "?"
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if size >= scale:
            return f"{size / scale:,.1f} {unit}"
    return f"{size / 1e3:,.1f} kB"


# --- what else is needed ---


def _say(console: Console, title: str, lines: Iterable[str]) -> None:
    console.print(f"[bold]{title}[/bold]")
    for line in lines:
        place = " " * (2 + len(line) - len(line.lstrip()))
        whole = textwrap.fill(line.strip(), _LINE, initial_indent=place, subsequent_indent=f"{place}    ")
        console.print(whole, markup=False, highlight=False, soft_wrap=True)
    console.print()


def _time(jobs: Sequence[Job], planned: Schedule, console: Console) -> None:
    counts = [planned.devices] if planned.unit == "cores" else [planned.devices, 4 * planned.devices]
    lines = [f"{_days(schedule(jobs, count).hours)} on {count} {planned.unit}" for count in counts]
    lines.append(f"{_days(planned.critical)} at least: the longest chain of jobs that wait for one another")
    lines.append("simulated: of the jobs that can start, the one with the longest way to the end starts first")
    _say(console, "Wall time (guessed)", lines)


def _days(hours: float) -> str:
    return f"{_number(hours / 24)} days" if hours >= 48 else f"{_number(hours)} hours"


def _disk(needed: storage.Disk, console: Console) -> None:
    lines = [
        f"{_bytes(needed.peak)} at most, with the states of trainings under way; {_bytes(needed.kept)} at the end",
        f"{_bytes(needed.removable)} of it are weights of {needed.checkpoints} checkpoints, which may be deleted once",
        "nothing more is to be made from them: remove the weights, keep checkpoint.json",
        f"{_bytes(needed.freed)} at most if each is deleted as soon as no job of the plan reads it",
    ]
    _say(console, "Disk (guessed)", lines)


def _downloads(found: Sequence[storage.Download], console: Console) -> None:
    models = [each for each in found if each.kind == "model" and not each.own]
    records = [each for each in found if each.kind == "records" and not each.own]
    lines = [f"{each.name}: {_bytes(each.size)}{', gated' if each.gated else ''}" for each in models]
    if models:
        lines.append(f"{len(models)} models, {_bytes(sum(each.size or 0 for each in models))}")
    if records:
        lines.append(f"{len(records)} data sets, most of them below 1 GB; their sizes are not known before")
    if gated := [each.name for each in found if each.gated]:
        lines.append(f"gated (accept the conditions on the Hub, set HF_TOKEN): {', '.join(gated)}")
    if own := [f"{each.name} ({each.own})" for each in found if each.own]:
        lines.append(f"your own files: {', '.join(own)}")
    if lines:
        _say(console, "Downloads (sizes from the parameters)", lines)


def _judges(asked: Sequence[storage.Asked], console: Console) -> None:
    lines = []
    for each in asked:
        cost = "no price in the configuration" if each.price is None else f"about ${each.price:,.0f}"
        lines.append(f"{each.judge}: {each.questions:,.0f} questions, {cost}")
    if lines:
        _say(console, "Judges asked over the network (guessed)", lines)


def _crowded(found: Sequence[storage.Crowded], console: Console) -> None:
    lines = [
        f"{each.model}: {_bytes(each.weights)} of weights on {each.gpus} GPU{'s' * (each.gpus > 1)} of "
        f"{_bytes(each.card)}; with resources.generate.gpu: {each.enough} they are spread over {each.enough}"
        for each in found
    ]
    if lines:
        _say(console, "Too little GPU memory for answers and attacks (docs/memory.md)", lines)


def _first(catalogue: Catalogue, jobs: Sequence[Job], chosen: first.First, device: str, console: Console) -> None:
    if not chosen.studies:
        return
    mine = [jobs[place] for place in chosen.jobs]
    hours, whole = _hours(mine, device), _hours(jobs, device)
    lines = [
        f"{len(mine):,} jobs, {_number(hours)} of {_number(whole)} {device} hours: of "
        f"{len(chosen.studies)} studies the smallest model at the first seed.",
        "Save as first.yaml:",
        "",
        *(f"  {line}" for line in chosen.overlay.splitlines()),
        "",
        "and run: snakemake --profile slurm --configfile first.yaml -- all",
    ]
    _say(console, "What to run first for a tenth of it", lines)
