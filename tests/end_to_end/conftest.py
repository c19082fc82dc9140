"""What end-to-end tests share: one launch for all tests that compare two processes with one."""

from __future__ import annotations

import io
import json
import os
import sys
from pathlib import Path

import pytest

from bulwark.jobs.launch import launch_line, run

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def launched(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which programs/all_ranks.py has done the plans of all modules that ask for it, in <PROGRAM>/.

    A module gives PROGRAM, PLANS (by the number of processes) and, where files have to be there first, `prepare`.
    """
    folder = tmp_path_factory.mktemp("ranks")
    asking = {item.module for item in request.session.items if "launched" in item.fixturenames}
    for module in asking:
        own = folder / module.PROGRAM
        own.mkdir()
        for ranks, plan in module.PLANS.items():
            (own / f"plan_{ranks}.json").write_text(json.dumps(plan))
        getattr(module, "prepare", lambda own: None)(own)
    paths = os.pathsep.join([str(HERE / "programs"), str(HERE.parent / "helpers"), *sys.path])
    for ranks in (1, 2):
        line = launch_line("all_ranks", str(folder), gpus=ranks)
        run(line, environment={"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}, output=io.StringIO())
    return folder
