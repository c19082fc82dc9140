"""How a model is held by jobs that answer and attack: from its file to the job and to what SLURM is asked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from bulwark import steps
from bulwark.config import loading, plan
from bulwark.config.costs import storage, tables
from bulwark.config.costs.estimates import Estimate
from bulwark.config.costs.graph import Job
from bulwark.config.entities import Model
from bulwark.jobs import job as jobs
from bulwark.jobs import launch
from bulwark.settings import read_yaml

CONFIG = Path(__file__).parents[3] / "config"
MODEL = "llama3.1-8b-instruct"
GENERATE = {"gpu": 2, "mem_gb": 96, "threads": 8}
GIVEN = {"source": {"path": "x"}, "template": "chat", "dtype": "bfloat16", "resources": {
    "train": {"mem_gb": 1}, "generate": GENERATE}}  # fmt: skip


def catalogue(also=None, **changes):
    said = {"resources": {"generate": GENERATE}} | changes
    content = read_yaml(CONFIG / "config.yaml") | {"models": {MODEL: said}} | (also or {})
    return loading.load(content, CONFIG)


@pytest.fixture(scope="module")
def spread():
    return catalogue(gpu_gb=[60.0, 70.0], attention="flash_attention_2")


def test_the_gpus_of_a_job_are_those_that_its_model_is_spread_over(spread):
    told = plan.loading(spread, MODEL)
    assert told == {"attention": "flash_attention_2", "gpus": 2, "gpu_gb": (60.0, 70.0)}
    for work in (plan.answers(spread, MODEL, "base", "refusal"), plan.step(spread, MODEL, "heretic")):
        assert work.resources["gpu"] == told["gpus"]
        assert work.resources["nodes"] == 1


def test_attention_decides_a_result_and_the_number_of_gpus_does_not(spread):
    usual = catalogue()
    assert plan.attention(spread, MODEL) != plan.attention(usual, MODEL) == "sdpa"
    assert plan.decisive_settings(usual, MODEL, "heretic") == plan.decisive_settings(loading.load(
        read_yaml(CONFIG / "config.yaml"), CONFIG), MODEL, "heretic")  # fmt: skip
    assert plan.decisive_settings(spread, MODEL, "heretic")["attention"] == "flash_attention_2"
    assert "attention" not in plan.decisive_settings(spread, MODEL, "vanilla"), "a training has its own"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"gpu_gb": [70.0]}, "gpu_gb has 1 numbers"),
        ({"dtype": "float32", "attention": "flash_attention_2"}, "half precision only"),
        ({"attention": "flash"}, "sdpa"),
        ({"resources": GIVEN["resources"] | {"generate": GENERATE | {"nodes": 2}}}, "one node"),
    ],
)
def test_what_does_not_fit_together_is_refused(changes, says):
    Model.model_validate(GIVEN, strict=False)
    with pytest.raises(ValueError, match=says):
        Model.model_validate(GIVEN | changes, strict=False)


@pytest.mark.parametrize(("kind", "processes"), [("heretic", 1), ("gradient_edit", 1), ("sft", 2)])
def test_an_attack_is_one_process_and_a_training_one_per_gpu(tmp_path, monkeypatch, kind, processes):
    started, done = [], []
    monkeypatch.setattr(launch, "run", lambda line, stop: started.append(line))
    monkeypatch.setattr(steps, "carry_out", lambda job: done.append(job.loading))
    job = jobs.Job(kind, {}, "parent", str(tmp_path / "x.json"), {}, {"seed": 0}, "log", loading={"gpus": 2})
    steps.perform(job, gpus=2, nodes=1, threads=1)
    assert (len(done), len(started)) == ((1, 0) if processes == 1 else (0, 1))
    assert processes == 1 or "--nproc-per-node=2" in started[0]


def job(rule: str, recipe: str = "base", gpus: int = 1) -> Job:
    given = {"model": MODEL, "recipe": recipe, "seed": "0", "benchmark": "refusal"}
    return Job(rule, given, (), (), (), gpus, 8, Estimate(1.0, "guessed"))


def test_a_plan_says_where_weights_need_more_gpus():
    """70.6 billion weights, two bytes each, on cards of 80 GB of which 92 % less 3 GB are for weights: 141.2 / 70.6."""
    one = catalogue(parameters=70.6e9, resources={"generate": GENERATE | {"gpu": 1}})
    (found,) = storage.crowded(one, [job("generate_answers"), job("apply_step", "heretic"), job("apply_step", "sft")])
    assert (found.model, found.gpus, found.enough) == (MODEL, 1, 2)
    assert found.weights == pytest.approx(141.2e9)
    assert storage.crowded(one, [job("apply_step", "sft")]) == [], "a training has other needs"
    content = {"steps": {"heretic": {"settings": {"quantised": "nf4"}}}}
    packed = catalogue(parameters=70.6e9, resources={"generate": GENERATE | {"gpu": 1}}, also=content)
    assert storage.crowded(packed, [job("apply_step", "heretic")]) == [], "in 4 bits they are 36 GB"
    assert storage.crowded(catalogue(parameters=70.6e9), [job("generate_answers")]) == []
    said = []
    tables._crowded([found], type("Console", (), {"print": lambda self, *text, **_: said.extend(map(str, text))})())
    assert "141.2 GB of weights on 1 GPU of 80.0 GB" in " ".join(said)
    assert "resources.generate.gpu: 2" in " ".join(" ".join(said).split())
