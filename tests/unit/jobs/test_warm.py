"""Jobs in the warm parent end, fail and are stopped as jobs in processes of their own, and leave nothing behind."""

import os
import signal
import time

import pytest
from warm_samples import alive, until, workflow_in

from bulwark.interrupts import WORKFLOW, mark_of

ENDS = {
    "success": ("succeed", {}, 0),
    "a status": ("leave", {"code": 3}, 3),
    "no status": ("leave", {"code": None}, 0),
    "a text for a status": ("leave", {"code": "that is it"}, 1),
    "an exception": ("fail", {}, 1),
    "a refusal": ("refuse", {}, 1),
    "a crash": ("crash", {}, -signal.SIGSEGV),
}


@pytest.fixture
def workflow(tmp_path):
    yield from workflow_in(tmp_path)


def without_times(text: str) -> list[str]:
    """The lines of a log but for the time of day and what Python says of the frames outside the call."""
    kept = [line.split(" ", 1)[1] if line[:2].isdigit() else line for line in text.splitlines()]
    return [line for line in kept if not line.startswith(" ")]


@pytest.mark.parametrize(("function", "arguments", "status"), ENDS.values(), ids=ENDS)
def test_status_output_and_log_are_those_of_a_fresh_process(workflow, function, arguments, status):
    told = []
    for warm in (True, False):
        (workflow.folder / "job.log").unlink(missing_ok=True)
        job = workflow.job(function, warm=warm, **arguments)
        out, err = job.communicate(timeout=30)
        assert (workflow.folder / "job.log").exists(), err
        log = (workflow.folder / "job.log").read_text()
        told.append((job.returncode, out, without_times(err), without_times(log)))
        process, _ = workflow.notes()[-1]
        assert (process == job.pid) != warm, "the wrong process did the job"
    assert told[0] == told[1]
    assert told[0][0] == status
    assert ("ValueError: something is wrong" in told[0][3]) == (function == "fail")
    named = f"ERROR bulwark: a wrong input ({workflow.folder / 'job.log'})"  # the log's path says which job it was
    assert (named in told[0][3]) == (function == "refuse")


def test_the_child_has_the_jobs_folder_umask_environment_and_arguments(workflow):
    place = workflow.folder / "elsewhere"
    place.mkdir()
    before = os.umask(0o027)
    try:
        drawn = []
        for value in ("one", "two"):
            job = workflow.job("surroundings", cwd=place, environment={"TMPDIR": str(place), "OF_THE_JOB": value})
            assert job.wait(30) == 0, job.stderr.read()
            told = eval((workflow.folder / "notes").read_text())
            assert told[:4] == (str(place), 0o027, value, ["an argument"])
            drawn.append(told[4])
        assert drawn[0] != drawn[1]  # random numbers begin anew in each child
    finally:
        os.umask(before)


def test_jobs_share_one_parent_and_workflows_do_not(workflow, tmp_path_factory):
    jobs = [workflow.job("succeed") for _ in range(4)]
    assert [job.wait(30) for job in jobs] == [0] * 4
    (parent,) = {parent for _, parent in workflow.notes()}
    assert workflow.parents() == [parent]
    for other in workflow_in(tmp_path_factory.mktemp("other")):
        other.job("succeed").wait(30)
        assert other.notes()[0][1] != parent
    assert alive(parent)  # the other workflow has ended by now


def test_a_light_job_uses_a_parent_and_starts_none(workflow):
    assert workflow.job("succeed", options={"warm": "use"}).wait(30) == 0
    assert not workflow.parents()
    assert workflow.job("succeed").wait(30) == 0
    light = workflow.job("succeed", options={"warm": "use"})
    assert light.wait(30) == 0
    assert workflow.notes()[2][1] == workflow.notes()[1][1]


@pytest.mark.parametrize(
    ("options", "environment"),
    [
        ({"gpus": 1}, {}),
        ({"warm": "never"}, {}),
        ({}, {"SLURM_JOB_ID": "7"}),
        ({}, {"WORLD_SIZE": "2"}),
        ({}, {"OMP_NUM_THREADS": "2"}),
        ({}, {"BULWARK_WORKFLOW": ""}),
    ],
    ids=str,
)
def test_where_a_child_would_not_be_like_a_fresh_process_there_is_none(workflow, options, environment):
    offer = {} if "BULWARK_WORKFLOW" in environment else workflow.offer
    job = workflow.job("succeed", warm=False, options=options, environment={**offer, **environment})
    assert job.wait(30) == 0
    assert workflow.notes()[0][0] == job.pid
    assert not workflow.parents()


def test_a_parent_with_threads_forks_nothing(workflow):
    (workflow.package / "threaded.py").write_text(
        "import threading, time\nthreading.Thread(target=time.sleep, args=(600,), daemon=True).start()\n"
    )
    for _ in range(2):
        job = workflow.job("succeed")
        assert job.wait(30) == 0
        assert workflow.notes()[-1][0] == job.pid
        assert len(workflow.parents()) == 1  # it stays, so that not every job starts one in vain


def test_edited_code_has_a_new_parent(workflow):
    assert workflow.job("succeed").wait(30) == 0
    path = workflow.package / "samples.py"
    path.write_text(path.read_text().replace("on stdout", "edited"))
    assert workflow.job("succeed").communicate(timeout=30)[0] == "edited\n"
    (_, first), (_, second) = workflow.notes()
    assert first != second


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_reaches_the_child(workflow, number):
    job = workflow.job("wait")
    child, _ = workflow.noted()
    job.send_signal(number)
    _, err = job.communicate(timeout=20)
    assert job.returncode == 128 + number
    assert err == "Stopped; give the same command again.\n"
    until(lambda: not alive(child))


def test_a_child_that_starts_when_the_workflow_was_told_to_end_does_nothing(workflow):
    mark = workflow.folder / mark_of(workflow.offer[WORKFLOW])
    mark.parent.mkdir(exist_ok=True)
    mark.touch()
    job = workflow.job("succeed")
    assert job.communicate(timeout=30) == ("", "")  # with --keep-going there may be hundreds; Snakemake says it once
    assert job.returncode == 128 + signal.SIGTERM


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_parent_leaves_signals_to_its_children(workflow, number):
    job = workflow.job("wait")
    child, parent = workflow.noted()
    os.kill(parent, number)
    time.sleep(0.2)
    assert alive(parent)
    assert alive(child)
    job.kill()


def test_a_job_that_was_told_to_end_does_not_start_again_without_its_parent(workflow):
    job = workflow.job("wait_through")
    _, parent = workflow.noted()
    job.send_signal(signal.SIGTERM)
    time.sleep(0.2)
    os.kill(parent, signal.SIGKILL)
    assert job.wait(20) == 128 + signal.SIGTERM
    assert len(workflow.notes()) == 1


def test_the_child_dies_with_its_job(workflow):
    job = workflow.job("wait")
    child, parent = workflow.noted()
    job.kill()
    until(lambda: not alive(child))
    assert alive(parent)
    assert workflow.job("succeed").wait(30) == 0


def test_a_job_whose_parent_is_killed_starts_again_in_its_own_process(workflow):
    job = workflow.job("wait_once")
    child, parent = workflow.noted()
    os.kill(parent, signal.SIGKILL)
    _, err = job.communicate(timeout=20)
    assert job.returncode == 0
    assert [process for process, _ in workflow.notes()] == [child, job.pid]
    assert "starts again in its own process" in err
    assert not alive(child)
    assert workflow.job("succeed").wait(30) == 0  # and the next job has a new parent
    assert workflow.notes()[-1][1] != parent


def test_nothing_outlives_a_workflow_that_is_killed(workflow):
    job = workflow.job("wait")
    child, parent = workflow.noted()
    workflow.end()
    assert job.wait(20) == 1
    until(lambda: not alive(child) and not alive(parent))
    assert len(workflow.notes()) == 1  # it did not start again


@pytest.mark.parametrize("warm", [True, False])
def test_everything_is_flushed_before_the_quick_end(workflow, warm):
    assert workflow.job("late", warm=warm).communicate(timeout=20)[0] == "beforeof a thread\n"


def test_a_workflow_on_a_cluster_offers_nothing(monkeypatch):
    from bulwark.jobs import warm

    monkeypatch.setenv(warm.VARIABLE, "of an outer workflow")
    warm.offer(local=False)
    assert warm.VARIABLE not in os.environ
