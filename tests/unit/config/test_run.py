"""What `bulwark status` says of the newest run: jobs done of all, the time left, last lines, and why jobs failed."""

import os
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from bulwark.config.standing import run

BEGAN = datetime(2026, 3, 1, 12, 0, 0)
HEAD = """Building DAG of jobs...
Job stats:
job                 count
----------------  -------
apply_step              3
generate_answers        6
all                     1
total                  10

Select jobs to execute...
"""


def finished(rule, done, of=10):
    return (
        f"[Sun Mar  1 12:01:00 2026]\nFinished jobid: {done} (Rule: {rule})\n{done} of {of} steps ({10 * done}%) done\n"
    )


def snakemake_log(text, minutes, began=BEGAN):
    path = Path(".snakemake/log") / f"{began:%Y-%m-%dT%H%M%S}.000000.snakemake.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    at = (began + timedelta(minutes=minutes)).timestamp()
    os.utime(path, (at, at))


def job_log(name, text, minutes):
    path = Path("results/logs") / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    at = (BEGAN + timedelta(minutes=minutes)).timestamp()
    os.utime(path, (at, at))
    return str(path)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_without_a_run_there_is_nothing():
    assert run.newest() is None


def test_a_run_that_works():
    snakemake_log("Job stats: of an earlier run", 0, BEGAN - timedelta(days=1))
    snakemake_log(HEAD + finished("apply_step", 1) + finished("generate_answers", 2), 4)
    job_log("apply_step/m/tar.log", "12:00:01 INFO bulwark.x: from before\n", -3)
    quiet = job_log("generate_answers/m/base.log", "12:01:00 INFO bulwark.x: 5 of 9\n", 1)
    line = "12:03:58 INFO bulwark.training.progress: m/aside/seed0: step 5/9 (55 %)  loss 0.5"
    busy = job_log("apply_step/m/aside.log", f"12:03:00 INFO bulwark.x: started\n{line}\n", 4)
    found = run.newest(BEGAN + timedelta(minutes=7))
    assert (found.done, found.total, found.ended) == (2, 10, False)
    assert found.rules == {"apply_step": (1, 3), "generate_answers": (1, 6), "all": (0, 1)}
    assert found.working == {busy: line}, f"{quiet} has been quiet for six minutes"
    assert found.failed == {}
    assert found.left == timedelta(minutes=16), "two jobs took four minutes, eight are left"
    told = run.told(found)
    assert told[0] == (
        "The newest run began 2026-03-01 12:00: 2 of 10 jobs done (20 %), 0:04:00 passed, 0:16:00 left at this pace."
    )
    assert told[1] == "  done of what is open: apply_step 1 of 3, generate_answers 1 of 6, all 0 of 1"
    assert f"  {busy}: {line}" in told


def test_why_jobs_failed_is_said_after_the_end():
    snakemake_log(
        HEAD + finished("apply_step", 1) + "Exiting because a job execution failed.\nComplete log(s): x\n", 30
    )
    wrong = "12:05:00 ERROR bulwark: data.jsonl, line 3: not a record.\nGive it an id. (a.log)\n"
    trace = (
        '12:06:00 ERROR bulwark: This job failed (x).\nTraceback (most recent call last):\n  File "x"\nKeyError: 3\n'
    )
    again = wrong + "12:07:00 INFO bulwark.x: the second attempt\n"
    first, second = job_log("apply_step/a.log", wrong, 5), job_log("apply_step/b.log", trace, 6)
    job_log("apply_step/c.log", again, 7)
    found = run.newest(BEGAN + timedelta(minutes=8))
    assert found.failed == {
        first: "data.jsonl, line 3: not a record. Give it an id. (a.log)",
        second: "KeyError: 3",
    }
    assert (found.ended, found.working, found.left) == (True, {}, None)
    told = run.told(found)
    assert told[0].endswith("1 of 10 jobs done (10 %), ended 12:30 after 0:30:00.")
    assert "  2 failed:" in told
    assert f"    {second}: KeyError: 3" in told
    assert "done of what is open: apply_step 1 of 3, generate_answers 0 of 6" in told[1]


def test_a_run_that_did_all_says_no_more():
    snakemake_log(HEAD + "".join(finished("apply_step", n) for n in range(1, 11)) + "Complete log(s): x\n", 3)
    assert len(run.told(run.newest())) == 1
