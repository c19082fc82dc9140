"""Damage to finished results, and then the command that made them: it says what is wrong, or makes it as it was."""

from __future__ import annotations

import shutil

import pytest

from bulwark.files import digest
from tests.conftest import SMALLEST, Checkout
from tests.faults import damage

pytestmark = pytest.mark.slow
# Results of different jobs, so that each has to be named; what is only drawn from others is drawn again without a word.
FAULTS = {
    "results/scores/miniature/vanilla/seed0/sep.records.jsonl": damage.drop,
    "results/scores/miniature/base/seed0/sep.json": damage.edit,
    "results/checkpoints/miniature/aside/seed0/model.safetensors": damage.flip,
    "results/checkpoints/miniature/vanilla/seed0/config.json": damage.edit,
    "results/reports/smallest/tables/aside_sep.md": damage.truncate,
    "results/answers/miniature/base/seed0/tasks.jsonl.seal.json": damage.delete,
}


@pytest.fixture(scope="module")
def run(world, tmp_path_factory) -> Checkout:
    copy = Checkout(tmp_path_factory.mktemp("run") / "bulwark")
    shutil.copytree(world.folder, copy.folder, symlinks=True)
    return copy


def test_whole_runs(run, drawn, tally):
    compared = [
        *(run.folder / "results").glob("**/*.safetensors"),
        *(run.folder / "results/answers").glob("**/sep.jsonl"),
        *(run.folder / "results/scores").glob("**/*.records.jsonl"),
        *(run.folder / "results/reports/smallest/tables").glob("*.md"),
    ]
    right = {path: digest(path) for path in compared}
    for name, damaging in FAULTS.items():
        damaging(run.folder / name, drawn)
    command = ["--cores", "2", "--configfile", SMALLEST, "--quiet", "rules", "--", "all"]
    said = run.snakemake(*command, check=False).stdout
    assert {path: digest(path) for path in compared} == right, said[-3000:]
    assert "made again" in said
    for name in FAULTS:
        names = [name.removesuffix(".seal.json"), *(["make_table"] if "/tables/" in name else [])]
        tally.note("mended", f"a whole run after damage to {name}", said, names)
    assert run.plan(*command[:4], "--", "all") == {}
