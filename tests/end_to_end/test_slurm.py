"""The users' command, `snakemake --profile slurm all`, on a real SLURM cluster of one node, one job of it killed.

The miniature's smallest configuration runs through the committed profile. While `aside` trains, `scancel --signal=KILL`
kills its job; the profile's `retries` submits it again, it resumes from its last saved state, and the table is made.

Skipped where SLURM is not installed, unless BULWARK_REQUIRE_SLURM=1 says that it has to be (as .ci/run does).
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "slurm"))
from cluster import Cluster, ClusterError, what_is_missing

OVERLAYS = ("tests/config/smallest.yaml", "tests/slurm/longer.yaml")
COMMAND = ("snakemake", "--profile", "slurm", "all", "--configfile", *OVERLAYS)
RECIPE = "miniature/aside/seed0"
PATIENCE = 900.0  # seconds, for the whole run


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A running cluster. It shows two CPUs whatever the machine has, because its jobs share the machine."""
    unfit = pytest.fail if os.environ.get("BULWARK_REQUIRE_SLURM") == "1" else pytest.skip
    if what_is_missing():
        unfit(f"There is no SLURM to test with. {what_is_missing()}")
    with tempfile.TemporaryDirectory(prefix="slurm-") as folder:
        started = Cluster(Path(folder), cpus=2)
        try:
            started.start()
        except ClusterError as error:
            unfit(f"SLURM does not start here. {error}")
        try:
            yield started
        finally:
            started.stop()


class Run:
    """The command, running in a copy of the repository against a cluster."""

    def __init__(self, folder: Path, cluster: Cluster) -> None:
        self.folder = folder
        self.cluster = cluster
        self.deadline = time.monotonic() + PATIENCE
        variables = {**os.environ, **cluster.environment, "PYTHONPATH": str(folder / "src"), "OMP_NUM_THREADS": "1"}
        variables["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), variables["PATH"]])
        with (folder / "output.txt").open("wb") as output:
            self.process = subprocess.Popen(COMMAND, cwd=folder, env=variables, stdout=output, stderr=subprocess.STDOUT)

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *exception: object) -> None:
        if self.process.poll() is None:
            self.process.kill()  # its jobs end with the cluster
            self.process.wait()

    @property
    def output(self) -> str:
        """What Snakemake has printed so far."""
        return (self.folder / "output.txt").read_text(errors="replace")

    def submitted(self) -> dict[str, str]:
        """SLURM's id of each job submitted so far -> its rule and wildcards, from the path of its log."""
        line = r"has been submitted with SLURM jobid (\d+) \(log: \S*/rule_(\S+)/\d+\.log\)"
        return dict(re.findall(line, self.output))

    def wait_until(self, what: str, happened: Callable[[], object]) -> None:
        """Look until `happened` returns something true; fail if Snakemake ends or the time runs out first."""
        while not happened():
            assert self.process.poll() is None, self._told(f"Snakemake ended before {what}")
            assert time.monotonic() < self.deadline, self._told(f"Waited in vain until {what}")
            time.sleep(0.2)

    def finish(self) -> None:
        """Wait for the end, which must be a success."""
        try:
            code = self.process.wait(max(1.0, self.deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            pytest.fail(self._told(f"Not finished after {PATIENCE:.0f} s"))
        assert code == 0, self._told("Snakemake failed")

    def _told(self, what: str) -> str:
        return f"{what}:\n{self.output[-8000:]}\nThe cluster:\n{self.cluster.condition()}"


def steps_saved(state: Path) -> list[int]:
    """Steps of which a complete training state lies in the folder `state`."""
    names = [entry.name for entry in state.iterdir()] if state.is_dir() else []
    return sorted(int(found[1]) for name in names if (found := re.fullmatch(r"step-(\d+)", name)))


@pytest.mark.slow
def test_a_killed_training_job_resumes_and_the_table_is_made(checkout, cluster):
    results = checkout.folder / "results"
    checkpoint = results / "checkpoints" / RECIPE
    with Run(checkout.folder, cluster) as run:
        run.wait_until("aside had saved a training state", lambda: steps_saved(checkpoint / "training"))
        [killed] = [number for number, job in run.submitted().items() if job == "apply_step/miniature_aside_0"]
        # The job's step is named, because SLURM asks a whole job with SIGTERM first; a step is killed at once.
        cluster.command("scancel", "--signal=KILL", f"{killed}.0")
        run.wait_until("the killed job had ended", lambda: killed in cluster.ended_jobs())
        saved = steps_saved(checkpoint / "training")
        assert not (checkpoint / "checkpoint.json").exists(), "killed too late to tell anything: it had finished"
        run.finish()
        submitted = run.submitted()

    # Every job ran on the cluster; the killed one, and no other, was submitted again, once.
    ended = cluster.ended_jobs()
    assert set(ended) >= set(submitted)
    assert {number for number in submitted if ended[number]["JobState"] != "COMPLETED"} == {killed}
    assert list(submitted.values()).count(submitted[killed]) == 2
    assert len(submitted) == len(set(submitted.values())) + 1
    assert {job.split("/")[0] for job in submitted.values()} == {"pretrain_model", "apply_step", "generate_answers"}

    log = (results / "logs" / "apply_step" / f"{RECIPE}.log").read_text()
    resumed = re.search(r"resum\w*\D*(\d+)", log, re.IGNORECASE)
    assert resumed, log
    assert int(resumed[1]) == saved[-1] > 0

    report = next((results / "reports").iterdir())
    table = (report / "tables" / "aside_sep.csv").read_text().splitlines()
    assert any("aside" in row.lower() for row in table[1:])
    claims = json.loads((report / "claims.json").read_text())
    assert claims
    assert all(claim["verdict"] for claim in claims)
    assert "Nothing to be done" in checkout.snakemake(*COMMAND[1:], "--dry-run").stdout


def test_a_job_that_asks_for_a_gpu_gets_one(cluster, tmp_path):
    output = tmp_path / "output.txt"
    words = ("--wait", "--gpus=1", "--nodes=1", f"--output={output}", "--wrap", "echo $SLURM_GPUS_ON_NODE")
    cluster.command("sbatch", *words)
    assert output.read_text().strip() == "1"


def test_a_folder_whose_path_is_too_long_is_refused_before_anything_starts(tmp_path):
    with pytest.raises(ClusterError, match="too long"):
        Cluster(tmp_path / ("long" * 30)).start()
