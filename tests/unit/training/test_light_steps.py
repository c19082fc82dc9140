"""A step that fine-tunes: what of it has to be written, and what is collected or attached by itself."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from tiny_causal_models import HIDDEN
from tiny_tokenizers import tiny_tokenizer
from transformers import AutoModelForCausalLM, LlamaConfig

from bulwark import files, steps
from bulwark.data.records import write_records
from bulwark.jobs.job import Job
from bulwark.models import checkpoints, manifests
from bulwark.models.embeddings import install, role_embedding_of
from bulwark.settings import Closed
from bulwark.steering.settings import AnalysedTraining
from bulwark.steering.vectors import storage
from bulwark.training.finetuning import FineTuningSettings, finetune
from bulwark.training.objectives import Objective, next_token_loss
from bulwark.training.observers import Observer

TRAINING = {"max_steps": 2, "batch_size": 2, "micro_batch_size": 2, "learning_rate": 1e-2}


class Reading(Closed):
    name: str

    def inputs(self):
        return {self.name: f"data/{self.name}.jsonl"}


class Holding(Closed):
    one: Reading
    several: tuple[Reading, ...] = ()
    by_name: dict[str, Reading] = {}
    number: int | Reading = 3


class Outer(FineTuningSettings):
    holding: Holding
    absent: Reading | None = None


def test_inputs_are_collected_from_all_settings_inside():
    read = {letter: Reading(name=letter) for letter in "abcd"}
    holding = Holding(one=read["a"], several=(read["b"],), by_name={"x": read["c"]}, number=read["d"])
    assert holding.inputs() == {letter: f"data/{letter}.jsonl" for letter in "abcd"}
    settings = Outer(data="some", training=TRAINING, holding=holding)
    data = {split: f"data/some/{split}.jsonl" for split in ("train", "validation")}
    assert settings.inputs() == data | holding.inputs()
    assert Holding(one=read["a"]).inputs() == {"a": "data/a.jsonl"}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with the checkpoint `base`, records and a vector."""
    place = tmp_path_factory.mktemp("light")
    torch.manual_seed(0)
    sizes = {"hidden_size": HIDDEN, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2}
    model = AutoModelForCausalLM.from_config(LlamaConfig(vocab_size=500, initializer_range=0.2, **sizes))
    install(model, {"method": "ise", "response_role": "data"})
    checkpoints.save_model(model, tiny_tokenizer("chatml"), place / "base")
    manifests.write_manifest(place / "base/checkpoint.json", {"template": "alpaca"})
    turns = [{"role": "instruction", "text": "Name a tree."}, {"role": "response", "text": "The oak."}]
    for split in ("train", "validation"):
        write_records(place / f"{split}.jsonl", [{"id": str(n), "turns": turns} for n in range(4)])
    digest = files.digest(place / "base/checkpoint.json")
    storage.write(place / "x.safetensors", torch.randn(4, HIDDEN), {"trait": "x", "model": {"digest": digest}})
    return place


def job_of(place, name: str) -> Job:
    inputs = {split: str(place / f"{split}.jsonl") for split in ("train", "validation")}
    inputs["vector_x"] = str(place / "x.safetensors")
    manifest = str(place / name / "checkpoint.json")
    return Job("light", {}, str(place / "base/checkpoint.json"), manifest, inputs, {"seed": 0}, "")


def weights_of(place, name: str) -> dict[str, torch.Tensor]:
    return checkpoints.load_model(place / name).state_dict()


def fine_tuned(place, name: str, settings: FineTuningSettings | None = None, **step):
    """What `fine_tune` records, with the weights saved in the folder `name`."""
    settings = settings or FineTuningSettings(data="x", training=TRAINING)
    job = job_of(place, name)
    record = steps.fine_tune(job, settings, SimpleNamespace(**step))
    manifests.write_manifest(job.output, record)
    return record


def test_a_step_without_anything_of_its_own_keeps_the_embedding_and_trains_plainly(place):
    record = fine_tuned(place, "plain")
    assert role_embedding_of(checkpoints.load_model(place / "plain")).method == "ise"
    finetune(job_of(place, "direct"), FineTuningSettings(data="x", training=TRAINING))
    assert (place / "plain/model.safetensors").read_bytes() == (place / "direct/model.safetensors").read_bytes()
    assert not {"analysis", "embedded_intervention"} & record.keys()


@pytest.mark.parametrize("lora", [None, {"rank": 2}])
def test_snapshots_lie_beside_the_end_as_whole_models(place, lora):
    def trained_for(steps: int, name: str, **more):
        training = TRAINING | {"max_steps": steps, "schedule": "constant", "lora": lora, **more}
        fine_tuned(place, f"{name}{bool(lora)}", FineTuningSettings(data="x", training=training))
        return f"{name}{bool(lora)}"

    long = trained_for(4, "long", snapshots=(1, 4))
    short = trained_for(1, "short")
    one, four = (weights_of(place, f"{long}/snapshots/{step}") for step in (1, 4))
    for ours, expected in ((one, weights_of(place, short)), (four, weights_of(place, long))):
        assert [name for name in expected if not torch.equal(ours[name], expected[name])] == []
    assert any(not torch.equal(one[name], four[name]) for name in one)
    assert checkpoints.load_tokenizer(place / long / "snapshots/1")


def test_a_step_gives_an_embedding(place):
    fine_tuned(place, "vanilla", embedding=lambda settings: {"method": "vanilla"})
    assert role_embedding_of(checkpoints.load_model(place / "vanilla")).method == "vanilla"


def test_a_step_gives_an_objective(place):
    class Doubled(Objective):
        def loss(self, model, batch):
            return 2 * next_token_loss(model, batch)

        def report(self):
            return {"steps_ahead": self.course.total_steps}

    def objective(course, settings):
        doubled = Doubled()
        doubled.course = course
        return doubled

    plain, doubled = fine_tuned(place, "once"), fine_tuned(place, "doubled", objective=objective)
    assert doubled["training"]["loss"][0][1] == pytest.approx(2 * plain["training"]["loss"][0][1])
    assert doubled["steps_ahead"] == 2


def test_an_analysis_is_attached_by_itself_and_changes_nothing(place):
    analysis = {"every": 1, "vectors": {"traits": ("x",), "layers": (1,)}}
    settings = AnalysedTraining(data="x", training=TRAINING, analysis=analysis)
    assert list(settings.inputs()) == ["train", "validation", "vector_x"]

    class TwoPhases(Objective):
        def phase(self, step):
            return "injection" if step == 0 else "after"

    record = fine_tuned(place, "analysed", settings, objective=lambda course, settings: TwoPhases())
    assert record["analysis"]["layer"] == 1
    lines = (place / "analysed/analysis.jsonl").read_text().splitlines()
    assert '"phase": "injection"' in lines[0]
    assert '"phase": "after"' in lines[-1]
    fine_tuned(place, "unobserved", settings.model_copy(update={"analysis": None}))
    ours, theirs = weights_of(place, "analysed"), weights_of(place, "unobserved")
    assert all(torch.equal(weight, theirs[name]) for name, weight in ours.items())


def test_observers_write_beside_the_saved_weights_and_are_in_the_record(place):
    class Writing(Observer):
        def write(self, folder):
            assert (folder / "model.safetensors").exists()
            (folder / "beside.txt").write_text("x")

        def report(self):
            return {"beside": 1}

    settings = FineTuningSettings(data="x", training=TRAINING)
    record = finetune(job_of(place, "written"), settings, None, lambda course: (Objective(), [Writing()]))
    assert record["beside"] == 1
    assert (place / "written/beside.txt").exists()
