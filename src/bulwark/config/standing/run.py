"""The newest run of the workflow in this folder: how far it is, what its jobs do, and why jobs failed.

Read from Snakemake's own log (`.snakemake/log/`) and the logs of the jobs (`results/logs/`), so it holds of a run in
another terminal, on a cluster, or of yesterday. A job has failed if its log ends with an error (`bulwark.logs`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from bulwark import files

_LOGS = Path("results/logs")
_RUNS = Path(".snakemake/log")
_NAME = re.compile(r"(\d{4}-\d\d-\d\dT\d{6}\.\d+)\.snakemake\.log$")
_DONE = re.compile(r"^(\d+) of (\d+) steps \(\d+%\) done$", re.MULTILINE)
_FINISHED = re.compile(r"^Finished jobid: \d+ \(Rule: (\w+)\)$", re.MULTILINE)
_STATS = re.compile(r"^Job stats:\n.*\n[- ]+\n(.*?)\n\n", re.MULTILINE | re.DOTALL)
_ENDED = "\nComplete log(s): "
_LINE = re.compile(r"^\d\d:\d\d:\d\d ([A-Z]+) [\w.]+: ")
_QUIET = timedelta(minutes=5)  # after which a job that has written nothing is no longer shown as working


@dataclass(frozen=True)
class Run:
    """done, total: jobs. rules: {rule: (done, of)}. ended: whether Snakemake has noted its end; if not, it works still,
    or was killed. last: when it last noted anything. working: {log of a job: its last line}; none of a run that has
    ended. failed: {log of a job: why}.
    """

    began: datetime
    last: datetime
    ended: bool
    done: int
    total: int
    rules: dict[str, tuple[int, int]]
    working: dict[str, str]
    failed: dict[str, str]

    @property
    def left(self) -> timedelta | None:
        """How long the rest takes at the pace so far, a job like the other; None where nothing is known."""
        if self.ended or not self.done:
            return None
        return (self.last - self.began) / self.done * (self.total - self.done)


def newest(now: datetime | None = None) -> Run | None:
    """The newest run in the working folder, or None. now: for tests."""
    runs = sorted(path for path in _RUNS.glob("*.log") if _NAME.search(path.name)) if _RUNS.is_dir() else []
    if not runs:
        return None
    path = runs[-1]
    text = path.read_text(encoding="utf-8", errors="replace")
    began = datetime.strptime(_NAME.search(path.name)[1], "%Y-%m-%dT%H%M%S.%f")
    last = datetime.fromtimestamp(path.stat().st_mtime)
    wanted = _wanted(text)
    finished = Counter(_FINISHED.findall(text))
    counted = _DONE.findall(text)
    done, total = map(int, counted[-1]) if counted else (0, sum(wanted.values()))
    ended = _ENDED in text
    working, failed = {}, {}
    for log, written in _logs_since(began):
        lines = log.read_text(encoding="utf-8", errors="replace").rstrip().splitlines()
        if (reason := _error(lines)) is not None:
            failed[str(log)] = reason
        elif not ended and lines and (now or datetime.now()) - written < _QUIET:
            working[str(log)] = lines[-1]
    rules = {rule: (finished[rule], of) for rule, of in wanted.items()}
    return Run(began, last, ended, done, total, rules, working, failed)


def told(run: Run, most: int = 12) -> list[str]:
    """The run in lines; of working and failed jobs `most` each, the latest."""
    percent = f"{100 * run.done // max(1, run.total)} %"
    lines = [f"The newest run began {run.began:%Y-%m-%d %H:%M}: {run.done} of {run.total} jobs done ({percent})"]
    if run.ended:
        lines[0] += f", ended {run.last:%H:%M} after {_clock(run.last - run.began)}."
    else:
        lines[0] += f", {_clock(run.last - run.began)} passed"
        lines[0] += f", {_clock(run.left)} left at this pace." if run.left is not None else "."
    if not run.ended or run.done < run.total:
        open_rules = [f"{rule} {done} of {of}" for rule, (done, of) in run.rules.items() if done < of]
        lines += [f"  done of what is open: {', '.join(open_rules)}"] if open_rules else []
    lines += [f"  {log}: {line}" for log, line in list(run.working.items())[-most:]]
    if run.failed:
        lines.append(f"  {len(run.failed)} failed:" if len(run.failed) > 1 else "  1 failed:")
        lines += [f"    {log}: {why}" for log, why in list(run.failed.items())[-most:]]
    return lines


def _wanted(text: str) -> dict[str, int]:
    """{rule: jobs} of Snakemake's table."""
    found = _STATS.search(text)
    rows = [line.split() for line in found[1].splitlines()] if found else []
    return {row[0]: int(row[1]) for row in rows if len(row) == 2 and row[0] != "total"}


def _logs_since(began: datetime) -> Iterator[tuple[Path, datetime]]:
    """Logs of jobs that were written since, the oldest first."""
    at = []
    for place, _, names in files.walk(_LOGS) if _LOGS.is_dir() else ():
        for path in (Path(place, name) for name in names if name.endswith(".log")):
            written = datetime.fromtimestamp(path.stat().st_mtime)
            if written >= began:
                at.append((written, path))
    yield from ((path, written) for written, path in sorted(at))


def _error(lines: list[str]) -> str | None:
    """What a log says of the error with which it ends, in a line; None if it does not end so."""
    starts = [number for number, line in enumerate(lines) if _LINE.match(line)]
    if not starts or _LINE.match(lines[starts[-1]])[1] != "ERROR":
        return None
    first, *further = lines[starts[-1] :]
    said = _LINE.sub("", first)
    if further and further[0].startswith("Traceback"):
        return further[-1]
    return " ".join([said, *(line.strip() for line in further)])


def _clock(passed: timedelta) -> str:
    return str(timedelta(seconds=round(passed.total_seconds())))
