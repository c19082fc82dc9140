"""A job verifies what it reads, seals what it makes, and says in words what is wrong with the disk."""

import errno
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from snakemake.iocontainers import InputFiles, OutputFiles, Params

from bulwark import seals
from bulwark.errors import BulwarkError, CheckpointError
from bulwark.jobs import sealing
from bulwark.jobs.sealing import Sealing, sealed, sealing_of, verified
from bulwark.models import manifests

RECORDS, ANSWERS, SCORES = (f"results/{name}" for name in ("data/d/test.jsonl", "answers/a.jsonl", "scores/s.json"))


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """An empty repository."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def write(path: str, text: str) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text)


def make(output: str, *inputs: str, text: str = "made") -> None:
    with sealed(Sealing(inputs, (output,), "asked", "rule")):
        write(output, text)


def fails(error: Exception, outputs: tuple[str, ...] = (SCORES,)) -> BaseException:
    """What a job ends with in which `error` is raised."""
    with pytest.raises(Exception) as told, sealed(Sealing((), outputs, "asked", "rule")):  # noqa: PT011
        raise error
    return told.value


def chain() -> None:
    write("mine.jsonl", "mine")
    make(RECORDS, "mine.jsonl")
    make(ANSWERS, RECORDS)


def test_what_a_job_makes_says_what_it_was_made_from():
    chain()
    assert seals.read(RECORDS).inputs == {"mine.jsonl": seals.hashed("mine.jsonl")}
    assert seals.read(ANSWERS).inputs == {RECORDS: seals.read(RECORDS).sha256}
    make(SCORES, RECORDS, ANSWERS)
    assert list(seals.read(SCORES).inputs) == [RECORDS, ANSWERS]


@pytest.mark.parametrize("damaged", [RECORDS, ANSWERS, f"{RECORDS}.seal.json", f"{ANSWERS}.seal.json"])
def test_a_job_does_not_begin_with_what_is_damaged(damaged):
    chain()
    raw = bytearray(Path(damaged).read_bytes())
    raw[1] ^= 1
    Path(damaged).write_bytes(raw)
    with pytest.raises(CheckpointError, match=f"{damaged}.* Remove {damaged.removesuffix('.seal.json')}"):
        make(SCORES, RECORDS, ANSWERS)
    assert not Path(SCORES).exists()


def test_inputs_that_do_not_belong_together_are_refused():
    """As where answers are scored against other records than were asked; both are whole."""
    chain()
    make(RECORDS, "mine.jsonl", text="other records")
    with pytest.raises(CheckpointError, match=rf"{ANSWERS}: it was made from another {RECORDS}.* Remove {ANSWERS}"):
        verified((RECORDS, ANSWERS))
    verified((ANSWERS,))


def test_only_what_is_below_results_needs_a_seal():
    chain()
    write("results/copied.jsonl", "x")
    with pytest.raises(CheckpointError, match=r"results/copied\.jsonl: it has no seal.* Remove"):
        verified(("results/copied.jsonl",))
    with pytest.raises(CheckpointError, match=r"none\.jsonl: no such file"):
        verified(("none.jsonl",))


def test_a_failed_job_seals_nothing_and_leaves_no_older_seal():
    chain()
    write(ANSWERS, "half")
    fails(ZeroDivisionError(), outputs=(ANSWERS,))
    assert seals.read(ANSWERS) is None
    with pytest.raises(CheckpointError, match="no such file"), sealed(Sealing((), (SCORES,), "asked", "rule")):
        pass  # the job has not made what it should


def test_a_manifest_is_sealed_as_it_is_written():
    path = "results/checkpoints/m/a/seed0/checkpoint.json"
    chain()
    with sealed(Sealing((RECORDS,), (path,), "asked", "apply_step")):
        write(str(Path(path).with_name("weights")), "abc")
        manifests.write_manifest(path, {"template": "chat"})
        known = seals.read(path)
        assert (known.asked, known.inputs) == ("asked", {RECORDS: seals.content(RECORDS)})
        before = Path(path).stat().st_mtime_ns
    assert Path(path).stat().st_mtime_ns == before  # nothing is left to do behind it
    assert seals.VARIABLE not in os.environ
    verified((path,))


def makes(output: str, seconds: float) -> subprocess.Popen:
    """A process that is making a result; it has begun."""
    code = "import sys, time; from pathlib import Path; from bulwark.jobs.sealing import Sealing, sealed\n"
    code += "with sealed(Sealing((), (sys.argv[1],), 'asked', 'rule')):\n"
    code += "    print('begun', flush=True); time.sleep(float(sys.argv[2])); Path(sys.argv[1]).write_text('theirs')"
    line = [sys.executable, "-c", code, output, str(seconds)]
    process = subprocess.Popen(line, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "begun\n"
    return process


@pytest.mark.parametrize("output", [SCORES, "results/checkpoints/m/a/seed0/checkpoint.json"])
def test_what_another_process_is_making_is_refused_with_its_number(output, monkeypatch):
    monkeypatch.setattr(sealing, "_SECONDS_OF_WAITING", 0.2)
    process = makes(output, 60)
    with pytest.raises(BulwarkError, match=rf"{output}: another process \(pid {process.pid} on .* Wait for it or end"):
        make(output)
    make("results/scores/other.json")
    process.kill()
    process.wait()
    assert [path.name for path in Path("results").rglob(".*.lock")], "it was killed, and left its file behind"
    if output == SCORES:
        make(output)
        assert not list(Path("results").rglob(".*.lock"))


def test_what_another_process_has_nearly_made_is_waited_for(monkeypatch):
    monkeypatch.setattr(sealing, "_SECONDS_OF_WAITING", 60)
    process = makes(SCORES, 0.5)
    make(SCORES, text="ours")
    assert process.wait() == 0
    assert Path(SCORES).read_text() == "ours"
    seals.verify(SCORES)
    assert sorted(path.name for path in Path(SCORES).parent.iterdir()) == ["s.json", "s.json.seal.json"]


def test_where_nothing_can_be_locked_a_job_goes_on(monkeypatch, caplog):
    def unknown(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(sealing.fcntl, "flock", unknown)
    with caplog.at_level(logging.INFO, logger="bulwark"):
        make(SCORES)
    assert "cannot be locked" in caplog.text
    assert "see that only one run makes results/scores/s.json" in caplog.text
    seals.verify(SCORES)


def full(cause=None):
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), cause)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (full(), rf"{SCORES}: there is no space left.* same command"),
        (full("results/else.tmp"), r"results/else\.tmp: there is no space left"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), rf"{SCORES}: there is no space left"),
        (OSError(errno.EROFS, "Read-only file system", SCORES), rf"{SCORES}: it may not be written.* mount"),
        (PermissionError(errno.EACCES, "Permission denied", "results/x"), r"results/x: it may not be written"),
        (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 78464 vs 78352"), "no space left"),
        (RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"), "no space left"),
    ],
)
def test_a_full_or_closed_disk_is_told_in_words(error, message):
    assert re.search(message, str(fails(error)))
    wrapped = ValueError("what a library makes of it")
    wrapped.__cause__ = error
    told = fails(wrapped)
    assert isinstance(told, BulwarkError)
    assert re.search(message, str(told))


def test_other_errors_are_left_as_they_are():
    for error in (OSError(errno.EBADF, "Bad file descriptor"), ValueError("x"), CheckpointError("y")):
        assert fails(error) is error


class Script:
    """What Snakemake gives to a script."""

    rule = "score_answers"

    def __init__(self, **params):
        self.input, self.output = InputFiles([RECORDS, RECORDS, ANSWERS]), OutputFiles([SCORES])
        self.params = Params(fromdict=params)


def test_what_is_asked_is_what_the_plan_says():
    assert sealing_of(Script(asked="line", code="x")) == Sealing((RECORDS, ANSWERS), (SCORES,), "line", "score_answers")


def test_a_rule_that_does_not_say_what_it_asks_is_refused():
    with pytest.raises(BulwarkError, match=r'rule score_answers has no `asked`.* \*\*decided\("score_answers", …\)'):
        sealing_of(Script(code="x"))
