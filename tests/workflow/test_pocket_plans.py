"""config/pocket.yaml takes a day on one GPU of 24 GB, as `bulwark plan` reckons it, and nobody is paid."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from bulwark.config import loading, overlays
from bulwark.config.costs import storage
from bulwark.config.costs.accelerators import ACCELERATORS
from bulwark.config.costs.schedule import schedule
from bulwark.jobs.memory import USABLE, Load, Shape, bytes_of
from tests.conftest import copy_of_the_tree

CARD = 24e9
POCKET = "config/pocket.yaml"
# config.json of the two models
SHAPES = {
    "qwen2.5-0.5b-instruct": Shape("Qwen2.5-0.5B", 24, 896, 4864, 14, 2, 64, 151936, tied=True),
    "smollm2-360m-instruct": Shape("SmolLM2-360M", 32, 960, 2560, 15, 5, 64, 49152, tied=True),
}
# float32, beside what any training holds: TAR's gradients of attacks, and its weights while one goes on; its reference
MORE = {"tar": 4 + 4 + 2}


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    """The catalogue of the pocket and the jobs of its plan."""
    checkout = copy_of_the_tree(tmp_path_factory.mktemp("pocket") / "bulwark")
    jobs = checkout.planned_jobs("--configfile", POCKET, "--", "all")
    folder = checkout.folder / "config"
    with contextlib.chdir(checkout.folder):
        return loading.load(overlays.read([Path(POCKET)], folder), folder), jobs


def test_the_pocket_takes_a_day_and_little_disk_of_one_gpu_and_asks_nobody(planned):
    catalogue, jobs = planned
    assert ACCELERATORS[catalogue.accelerator].memory == CARD
    assert {job.gpus for job in jobs} == {0, 1}
    told = schedule(jobs, 1)
    assert told.unit == "GPUs"
    assert 12 < told.hours <= 24
    assert storage.disk(catalogue, jobs, told).peak <= 100e9
    assert storage.judges(catalogue, jobs) == []
    assert storage.crowded(catalogue, jobs) == []


def test_all_four_systems_and_the_cross_table_are_in_it(planned):
    catalogue, jobs = planned
    assert list(catalogue.studies) == ["aside", "steering_analyses", "abliteration", "tar", "cross"]
    for name, study in catalogue.studies.items():
        assert name == "cross" or set(study.models) == set(SHAPES)
        assert name == "cross" or study.claims
    assert all(catalogue.models[model].parameters <= 1e9 for model in SHAPES)
    assert "make_table" in {job.rule for job in jobs}


def test_whatever_it_downloads_is_pinned_and_open(planned):
    catalogue, jobs = planned
    models = {job.model for job in jobs if job.rule == "download_model"}
    data = {job.wildcards["dataset"] for job in jobs if job.rule == "download_dataset"}
    assert models == set(SHAPES)
    assert data
    for entity in [*(catalogue.models[name] for name in models), *(catalogue.datasets[name] for name in data)]:
        source = entity.source
        assert not entity.gated
        assert source.revision or source.sha256 or source.git_blob, entity.description


def test_every_training_fits_the_card(planned):
    catalogue, jobs = planned
    steps = {(job.model, job.wildcards["recipe"].split("+")[-1]) for job in jobs if job.rule == "apply_step"}
    fits = 0
    for model, name in sorted(steps):
        step, shape = catalogue.step(model, name), SHAPES[model]
        training = getattr(step.settings, "training", None)
        if training is None:
            continue
        simulated = getattr(step.settings, "inner", None)  # TAR's attacks
        rows = max(part.micro_batch_size for part in (training, simulated) if part is not None)
        tokens = rows * training.max_tokens
        load = Load(
            tokens=tokens, checkpointing=training.gradient_checkpointing, rank=getattr(training.lora, "rank", 0)
        )
        held = bytes_of(shape, "LoRA training" if training.lora else "full training", 1, load)
        assert held + MORE.get(name, 0) * shape.parameters <= USABLE * CARD, (model, name, held / 1e9)
        fits += 1
    assert fits >= 10
