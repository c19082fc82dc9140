"""The command line: `bulwark plan`, `status`, `show` and `ask`. Everything else is Snakemake."""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from pathlib import Path

from bulwark.errors import BulwarkError


def main(arguments: list[str] | None = None) -> int:
    """Run one command; a wrong input ends with its message and status 1."""
    parser = argparse.ArgumentParser(prog="bulwark", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    plan = commands.add_parser("plan", help="jobs and GPU hours that a target still needs")
    plan.add_argument("arguments", nargs="*", help="targets and options, as for snakemake")

    status = commands.add_parser("status", help="what is done: checkpoints, scores, tables, figures, claims")
    status.add_argument("--configfile", nargs="*", default=[], help="overlays, as for snakemake")

    show = commands.add_parser("show", help="the scores of checkpoints, whether a configuration lists them or not")
    show.add_argument("paths", nargs="*", type=Path, help="scores files, checkpoints or folders of them; all for none")

    ask = commands.add_parser("ask", help="let a checkpoint answer an instruction over data")
    ask.add_argument("checkpoint", help="a checkpoint.json, or the folder that holds it")
    ask.add_argument("--instruction", required=True)
    ask.add_argument("--data", help="text the instruction is about; instructions inside it are only text")
    ask.add_argument("--max-new-tokens", type=int, help="default: 256, or half of what the model can attend to")

    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["plan"] and not {"-h", "--help"} & set(given):
        options = argparse.Namespace(command="plan", arguments=given[1:])  # Snakemake's own options pass untouched
    else:
        options = parser.parse_args(given)
    try:
        return {"plan": _plan, "status": _status, "show": _show, "ask": _ask}[options.command](options)
    except BulwarkError as error:
        print(f"bulwark: {error}", file=sys.stderr)
        return 1


def _plan(options: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.table import Table

    from bulwark.config.costs import plan

    table = Table("rule", "jobs", "hours in a row", "GPU hours", title="still to do (expected times)")
    costs = plan(options.arguments)
    for rule, cost in sorted(costs.items(), key=lambda item: -item[1].gpu_hours):
        table.add_row(rule, str(cost.jobs), f"{cost.hours:,.1f}", f"{cost.gpu_hours:,.1f}")
    table.add_section()
    totals = [sum(getattr(cost, name) for cost in costs.values()) for name in ("jobs", "hours", "gpu_hours")]
    table.add_row("all", str(totals[0]), f"{totals[1]:,.1f}", f"{totals[2]:,.1f}")
    Console().print(table)
    return 0


def _status(options: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.table import Table

    from bulwark.config import loading, overlays, paths

    for path in [Path("config/config.yaml"), *map(Path, options.configfile)]:
        if not path.is_file():
            raise BulwarkError(f"{path} does not exist. Run this in the top folder of the repository.")
    catalogue = loading.load(overlays.read(options.configfile, Path("config")), Path("config"))
    console = Console()

    table = Table("study", "checkpoints", "scores", "tables", "figures", title="done / asked for")
    shown: list[Path] = []
    for name, study in catalogue.studies.items():
        cells = catalogue.cells(name)
        if not cells:  # an overlay's way to leave a study out
            continue
        scores = [Path(paths.scores(*cell)) for cell in cells]
        checkpoints = {Path(paths.checkpoint(*cell[:3])) for cell in cells}
        tables = [Path(paths.table(catalogue.name, table)[1]) for table in study.tables]
        figures = [Path(paths.figure(catalogue.name, figure)[1]) for figure in study.figures]
        asked = (checkpoints, scores, tables, figures)
        table.add_row(name, *(f"{sum(path.exists() for path in files)} / {len(files)}" for files in asked))
        shown += [path for path in [*tables, *figures] if path.exists()]
    console.print(table)
    for path in shown:
        if path.suffix == ".md":
            console.print(f"\n[bold]{path}[/bold]")
            console.print(path.read_text(encoding="utf-8").strip(), markup=False, soft_wrap=True)
    claims, readable = map(Path, paths.claims(catalogue.name))
    if claims.exists():
        console.print("\n[bold]claims[/bold]")
        for claim in json.loads(claims.read_text(encoding="utf-8")):
            console.print(f"  {claim['verdict'].upper()}: {claim['statement']} ({claim['source']})", markup=False)
    console.print()
    for path in [*shown, readable, Path(paths.page(catalogue.name))]:
        if path.exists():
            console.print(f"{path}", markup=False)
    return 0


def _show(options: argparse.Namespace) -> int:
    from rich.console import Console

    from bulwark.reporting.shown import show

    show(options.paths, Console(markup=False))
    return 0


def _ask(options: argparse.Namespace) -> int:
    import bulwark

    assistant = bulwark.load(options.checkpoint)
    if not options.instruction.strip():
        raise BulwarkError("--instruction is empty: say what the model is to do.")
    decoding = {} if options.max_new_tokens is None else {"max_new_tokens": options.max_new_tokens}
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", UserWarning)
        answer = assistant.answer(options.instruction, options.data, **decoding)
    for warning in told:
        if warning.category is UserWarning:
            print(f"bulwark: {warning.message}", file=sys.stderr)
    print(answer)
    return 0


if __name__ == "__main__":
    sys.exit(main())
