"""A search whose process is killed, again and again, ends as one that was left alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

HELPERS = Path(__file__).parents[1] / "helpers"
SETTINGS = {
    "prompts": {"harmful": "harmful", "harmless": "harmless"},
    "dtype": "float32",
    "edit": {"normalization": "none"},
    "space": {
        "max_weight": {"attention": [0.8, 1.5], "mlp": [-0.25, 1.5]},
        "max_weight_position": [0.0, 1.0],
        "min_weight_distance": 2.0,
    },
    "search": {"trials": 60, "startup_trials": 20, "ei_candidates": 16, "trials_per_batch": 3, "max_new_tokens": 6},
}


def test_a_search_killed_in_its_process_ends_with_the_same_front(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(HELPERS))
    from abliteration_samples import checkpoint, job_for

    parent = checkpoint(tmp_path / "parent")
    found = {}
    for name, deaths in (("whole", []), ("killed", [2, 17, 41])):
        folder = tmp_path / name / "model"
        job = replace(job_for("heretic", folder, parent), settings=SETTINGS, log=str(tmp_path / f"{name}.log"))
        description = tmp_path / f"{name}.json"
        job.write(description)
        for measured in deaths:
            assert killed_after(measured, description, folder / "training" / "study.journal")
        done = subprocess.run([sys.executable, "-m", "bulwark.steps", str(description)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        found[name] = [told(row) for row in map(json.loads, (folder / "trials.jsonl").read_text().splitlines())]
        assert not (folder / "training").exists()
    assert len(found["whole"]) == 60
    assert found["killed"] == found["whole"]
    assert any(row["pareto"] for row in found["whole"])


def told(row: dict) -> dict:
    """A trial without how long it took."""
    return {key: value for key, value in row.items() if key != "seconds"}


def killed_after(measured: int, description: Path, journal: Path) -> bool:
    """Start the attack and kill it when the journal tells of so many measured trials; whether it came to that."""
    process = subprocess.Popen(
        [sys.executable, "-m", "bulwark.steps", str(description)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        while process.poll() is None:
            if journal.exists() and journal.read_bytes().count(b'"op_code":6') >= measured:
                os.kill(process.pid, signal.SIGKILL)
                process.wait()
                return True
            time.sleep(0.002)
        return False
    finally:
        process.kill()
