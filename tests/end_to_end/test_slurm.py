"""The users' command, `snakemake --profile slurm all`, on a real SLURM cluster of one node, one job of it killed.

The miniature's smallest configuration runs through the committed profile. While `aside` trains, `scancel --signal=KILL`
kills its job; the profile's `retries` submits it again, it resumes from its last saved state, and the table is made.

Skipped where SLURM is not installed, unless BULWARK_REQUIRE_SLURM=1 says that it has to be (as .ci/run does).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest
from slurm_runs import Cluster, ClusterError, Run, running, steps_saved

OVERLAYS = ("tests/config/smallest.yaml", "tests/slurm/longer.yaml")
COMMAND = ("all", "--configfile", *OVERLAYS)
RECIPE = "miniature/aside/seed0"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with running() as started:
        yield started


@pytest.mark.slow
def test_a_killed_training_job_resumes_and_the_table_is_made(checkout, cluster):
    results = checkout.folder / "results"
    checkpoint = results / "checkpoints" / RECIPE
    with Run(checkout.folder, cluster, *COMMAND) as run:
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
    assert "Nothing to be done" in checkout.snakemake("--profile", "slurm", *COMMAND, "--dry-run").stdout


def test_a_job_that_asks_for_a_gpu_gets_one(cluster, tmp_path):
    output = tmp_path / "output.txt"
    words = ("--wait", "--gpus=1", "--nodes=1", f"--output={output}", "--wrap", "echo $SLURM_GPUS_ON_NODE")
    cluster.command("sbatch", *words)
    assert output.read_text().strip() == "1"


def test_a_folder_whose_path_is_too_long_is_refused_before_anything_starts(tmp_path):
    with pytest.raises(ClusterError, match="too long"):
        Cluster(tmp_path / ("long" * 30)).start()
