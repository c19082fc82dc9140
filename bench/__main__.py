"""Run the benchmarks named on the command line, or all of them, and print one table."""

from __future__ import annotations

import argparse
import importlib
import platform
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

_HELPERS = ("processes", "timing", "published_search")
NAMES = sorted(path.stem for path in Path(__file__).parent.glob("[a-z]*.py") if path.stem not in _HELPERS)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(NAMES)}; all if none is given")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    console = Console()
    table = Table("benchmark", "what", "ratio (median)", "range", "wanted")
    for name in options.names or NAMES:
        for result in importlib.import_module(f"bench.{name}").run():
            table.add_row(
                name, result.what, f"{result.median:.3g}", f"{result.low:.3g} … {result.high:.3g}", result.wanted
            )
            console.print(f"{name}: {result.what}: {result.median:.3g}")
    console.print(table)
    console.print(f"torch {torch.__version__}, {options.threads} threads, {platform.processor() or platform.machine()}")


if __name__ == "__main__":
    main()
