"""The command line: `bulwark plan`, `status`, `show`, `ask`, `serve` and `export`. Everything else is Snakemake."""

from __future__ import annotations

import argparse
import json
import os
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from bulwark import interrupts
from bulwark.errors import BulwarkError, nearest

if TYPE_CHECKING:
    from rich.console import Console

    from bulwark.config.catalogue import Catalogue
    from bulwark.config.entities import Study
    from bulwark.models.placing.loading import Loading

_GPUS = 64  # that wall time is told for, unless --gpus says otherwise
_WIDTH = 110  # of tables where no terminal shows them


def main(arguments: list[str] | None = None) -> int:
    """Run one command; a wrong input ends with its message and status 1, Ctrl-C with status 130, SIGTERM with 143.

    arguments: by default those of this process, which then ends in order when it is told to.
    """
    if arguments is None:
        interrupts.catch()
    parser = argparse.ArgumentParser(prog="bulwark", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    plan = commands.add_parser(
        "plan", help="what a target still needs: jobs, hours, disk, downloads …; what to run first"
    )
    plan.add_argument("arguments", nargs="*", help="targets and options, as for snakemake")
    plan.add_argument("--gpus", help=f"for how many the wall time is told; default: {_GPUS}")

    status = commands.add_parser("status", help="what is done, stale (and why) or missing; tables and claims")
    status.add_argument("--configfile", nargs="*", default=[], help="overlays, as for snakemake")

    show = commands.add_parser("show", help="the scores of checkpoints, whether a configuration lists them or not")
    show.add_argument("paths", nargs="*", type=Path, help="scores files, checkpoints or folders of them; all for none")

    ask = commands.add_parser("ask", help="let a checkpoint answer an instruction over data")
    ask.add_argument("checkpoint", help="a checkpoint.json, or the folder that holds it")
    ask.add_argument("--instruction", required=True)
    ask.add_argument("--data", help="text the instruction is about; instructions inside it are only text")
    ask.add_argument("--max-new-tokens", type=int, help="default: 256, or half of what the model can attend to")

    serve = commands.add_parser("serve", help="an OpenAI-compatible address for a checkpoint, for agents and judges")
    serve.add_argument("checkpoint", help="a checkpoint.json, the folder that holds it, or any folder with a causal LM")
    serve.add_argument("--host", default="127.0.0.1", help="default: this machine alone, 127.0.0.1")
    serve.add_argument("--port", type=int, default=8000, help="default: 8000; 0 takes a free one")
    serve.add_argument("--device", help="cpu, cuda …; default: a GPU if there is one")
    serve.add_argument("--dtype", help="default: bfloat16 on a GPU, float32 on the CPU")
    serve.add_argument("--template", help="of prompts; default: the checkpoint's own")
    serve.add_argument("--name", help="of the model, to clients; default: model/recipe/seed, or the folder's name")
    serve.add_argument(
        "--max-new-tokens", type=int, default=1024, help="of an answer, unless a request says; default: 1024"
    )

    for opening in (ask, serve):
        opening.add_argument(
            "--gpus", type=int, default=1, help="over so many of this machine the model is spread; default: 1"
        )

    export = commands.add_parser("export", help="a checkpoint as an ordinary model, roles as ids, for other engines")
    export.add_argument("checkpoint", help="a checkpoint.json, or the folder that holds it")
    export.add_argument("--for", dest="kind", choices=["plain"], required=True, help="plain: without any code of ours")
    export.add_argument("out", help="a new folder")

    given = list(sys.argv[1:] if arguments is None else arguments)
    if given and not given[0].startswith("-") and given[0] not in commands.choices:
        print(f'bulwark: there is no command "{given[0]}".{nearest(given[0], commands.choices)}', file=sys.stderr)
        return 2
    if given[:1] == ["plan"] and not {"-h", "--help"} & set(given):
        options = argparse.Namespace(command="plan", arguments=given[1:])  # Snakemake's own options pass untouched
    else:
        options = parser.parse_args(given)
    try:
        commands_ = {"plan": _plan, "status": _status, "show": _show, "ask": _ask, "serve": _serve, "export": _export}
        return commands_[options.command](options)
    except BulwarkError as error:
        print(f"bulwark: {error}", file=sys.stderr)
        return 1


def _plan(options: argparse.Namespace) -> int:
    from rich.console import Console

    from bulwark.config import loading, overlays
    from bulwark.config.costs import graph, schedule, tables
    from bulwark.config.standing.dry_run import planned_jobs, told_again, told_shares, told_trials

    gpus, arguments = _gpus_of(options.arguments)
    with _progress("Snakemake makes the plan, 2 to 4 seconds for 1,000 jobs"):
        printed, written = planned_jobs(arguments)
    with _progress(f"what its {len(written['jobs']):,} jobs cost"):
        folder = Path(written["folder"])
        catalogue = loading.load(overlays.read(written["configfiles"], folder, written["options"]), folder)
        jobs = graph.jobs_of(catalogue, written["jobs"])
    for told in (told_again(printed), told_trials(printed), told_shares(printed)):
        if told:
            print(told + "\n")
    if gpus is None:
        gpus = max(_GPUS, *(job.gpus for job in jobs)) if schedule.unit_of(jobs) == "GPUs" else os.cpu_count() or 1
    tables.show(catalogue, jobs, gpus, Console() if sys.stdout.isatty() else Console(width=_WIDTH))
    return 0


def _gpus_of(arguments: Sequence[str]) -> tuple[int | None, list[str]]:
    """The number after --gpus, and the other arguments, which are Snakemake's."""
    given, rest = None, list(arguments)
    for place, word in enumerate(rest):
        option, _, value = word.partition("=")
        if option == "--gpus":
            end = place + (1 if value else 2)
            given, rest = value or "".join(rest[place + 1 : end]), rest[:place] + rest[end:]
            break
        if word == "--":
            break
    if given is None:
        return None, rest
    if not given.isdigit() or int(given) < 1:
        raise BulwarkError(f'--gpus takes a whole number from 1, not "{given}".')
    return int(given), rest


@contextmanager
def _progress(what: str) -> Iterator[None]:
    """What is under way, on stderr: a line that shows it goes on at a terminal, elsewhere one line."""
    from rich.console import Console

    console = Console(stderr=True)
    if console.is_terminal:
        with console.status(f"{what} …"):
            yield
    else:
        print(f"bulwark: {what} …", file=sys.stderr, flush=True)
        yield


def _status(options: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.table import Table

    from bulwark.config import loading, overlays, paths, plan_reports
    from bulwark.config.standing import run
    from bulwark.config.standing.dry_run import standings
    from bulwark.config.standing.overview import STATES, overview
    from bulwark.reporting import verdicts

    if not Path("config/config.yaml").is_file():
        raise BulwarkError("config/config.yaml does not exist. Run this in the top folder of the repository.")
    catalogue = loading.load(overlays.read(options.configfile, Path("config")), Path("config"))
    overlaid = ["--configfile", *options.configfile] if options.configfile else []
    found = overview(catalogue, standings([*overlaid, "--", "all"]))
    console = Console()
    if (newest := run.newest()) is not None:
        console.print("\n".join(run.told(newest)) + "\n", markup=False, highlight=False, soft_wrap=True)

    kinds = ("checkpoints", "scores", "tables", "figures")
    table = Table("study", *kinds, title=f"{catalogue.name}: what is there of what is asked for")
    for study, counts in found.studies.items():
        table.add_row(study, *(_counted(counts[kind], STATES) for kind in kinds))
    console.print(table)

    files = [path for study in catalogue.studies.values() for path in _shown_by(catalogue, study)]
    files = [path for path in dict.fromkeys(files) if Path(path).exists()]
    for path in files:
        if path.endswith(".md") and _whole(path):
            console.print(f"\n[bold]{path}[/bold]{_mark(found.states, path)}")
            console.print(Path(path).read_text(encoding="utf-8").strip(), markup=False, soft_wrap=True)
    claims, readable = paths.claims(catalogue.name)
    if _whole(claims):
        console.print(f"\n[bold]claims[/bold]{_mark(found.states, claims)}")
        columns = plan_reports.columns(catalogue)
        for claim in json.loads(Path(claims).read_text(encoding="utf-8")):
            said = verdicts.line(claim, columns.get(claim["id"], {}))
            console.print(f"  {said}", markup=False, soft_wrap=True)
    console.print()
    for path in [*files, readable, paths.page(catalogue.name)]:
        if Path(path).exists():
            console.print(f"{path}{_mark(found.states, path)}", markup=False, soft_wrap=True)
    _print_rest("Left from before, and nothing asks for it any more; remove it:", found.left_over, console)
    stale = [f"{_some(them)}: {why.removeprefix(f'{them[0]} ')}" for why, them in found.stale.items()]
    _print_rest("Stale, and why:", stale, console)
    if found.derived:
        console.print(f"  {found.derived} more, because they are made from these")
    return 0


def _whole(path: str) -> bool:
    """Whether a result is there as it was made; what is damaged is listed as stale, with the reason, and not shown."""
    from bulwark import seals

    try:
        return Path(path).exists() and not seals.damage(path)
    except BulwarkError:  # of a damaged seal
        return False


def _shown_by(catalogue: Catalogue, study: Study) -> list[str]:
    """The readable tables and figures of a study."""
    from bulwark.config import paths

    tables = [paths.table(catalogue.name, table)[1] for table in study.tables]
    return tables + [paths.figure(catalogue.name, figure)[1] for figure in study.figures]


def _counted(numbers: Mapping[str, int], states: Sequence[str]) -> str:
    """ "3 done, 1 stale"; "-" for nothing that is asked for."""
    return ", ".join(f"{numbers[state]} {state}" for state in states if numbers.get(state)) or "-"


def _mark(states: Mapping[str, str], path: str) -> str:
    return "  (stale: it shows what was asked for before)" if states.get(path) == "stale" else ""


def _some(paths: Sequence[str]) -> str:
    return paths[0] + (f" and {len(paths) - 1} more" if len(paths) > 1 else "")


def _print_rest(title: str, lines: Sequence[str], console: Console, most: int = 40) -> None:
    if lines:
        console.print(f"\n[bold]{title}[/bold]")
        for line in [*lines[:most], *([f"… and {len(lines) - most} more"] if len(lines) > most else [])]:
            console.print(f"  {line}", markup=False, soft_wrap=True)


def _show(options: argparse.Namespace) -> int:
    from rich.console import Console

    from bulwark.reporting.shown import show

    show(options.paths, Console(markup=False))
    return 0


def _ask(options: argparse.Namespace) -> int:
    import bulwark

    assistant = bulwark.load(options.checkpoint, loading=_loading(options))
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


def _loading(options: argparse.Namespace) -> Loading:
    """How a command holds its model: as jobs do whose model names as many GPUs under resources.generate."""
    from bulwark.models.placing.loading import Loading

    if options.gpus < 1:
        raise BulwarkError("--gpus takes a whole number from 1.")
    return Loading(gpus=options.gpus)


def _serve(options: argparse.Namespace) -> int:
    from bulwark.serving.server import serve

    if options.max_new_tokens < 1:
        raise BulwarkError("--max-new-tokens is less than 1: an answer has at least one token.")
    given = {key: getattr(options, key) for key in ("host", "port", "device", "dtype", "template", "name")}
    given |= {"new_tokens": options.max_new_tokens, "loading": _loading(options)}
    serve(options.checkpoint, say=lambda line: print(line, flush=True), **given)
    return 0


def _export(options: argparse.Namespace) -> int:
    from bulwark.serving.plain import export

    difference = export(options.checkpoint, options.out)
    print(
        f"{options.out}: an ordinary model, its logits within {difference:.0e} of the largest. Its README.md says how"
    )
    print("prompts get their roles: whoever gives it text in place of ids serves it without its defense.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
