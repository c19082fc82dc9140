"""An intervention that a checkpoint carries: in training only, at responses only, from one training to the next."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from steering_samples import course_of, fused, same_bits, steered_model, vector
from tiny_causal_models import HIDDEN
from tiny_tokenizers import tiny_tokenizer
from training_samples import PAD, examples, trained
from transformers import AutoModelForCausalLM

from bulwark import steps
from bulwark.data.records import write_records
from bulwark.errors import BulwarkError, CheckpointError
from bulwark.jobs.job import Job
from bulwark.models import checkpoints, manifests
from bulwark.steering.embedded import (
    FILE,
    Carried,
    EmbeddedIntervention,
    embedded_in,
    read_embedded,
    write_embedded,
)
from bulwark.steering.schedules import ScheduleSettings, Strength
from bulwark.steering.settings import InterventionSettings
from bulwark.steering.steer import Steering, steering
from bulwark.training.batches import StepBatches
from bulwark.training.finetuning import FineTuningSettings
from bulwark.training.objectives import next_token_loss, target_logits

STEPS, ALPHA = 6, 3.0
SETTINGS = InterventionSettings(alpha=ALPHA)
BLOCK = "model.layers.1"


def carrying(alpha: float = ALPHA, exposure: int = 0, end: float = 1.0):
    model = steered_model()
    EmbeddedIntervention({BLOCK: vector(2)}, Strength(alpha, end, 0.0, 100.0), exposure).install(model)
    return model


def batch_of(count: int = 4):
    [batch] = StepBatches(examples(count), batch_size=count, micro_batch_size=count, pad_id=PAD).of_step(0)
    return batch


def test_training_with_it_is_static_steering_bit_for_bit(tmp_path):
    course = course_of(steered_model(), tmp_path, max_steps=STEPS)
    static = trained(
        steered_model(),
        tmp_path / "a",
        objective=steering(course, fused(), SETTINGS, ScheduleSettings()),
        max_steps=STEPS,
    )
    model = steered_model()
    objective = steering(replace(course, model=model), fused(), SETTINGS, ScheduleSettings(), embedded=True)
    inside = trained(model, tmp_path / "b", objective=objective, observers=[Carried(model)], max_steps=STEPS)
    assert same_bits(inside.model, static.model)
    carried = embedded_in(inside.model)
    assert list(carried.at) == [BLOCK]
    assert carried.exposure == inside.report.target_tokens
    assert carried.described()["alpha"] == ALPHA


def test_it_acts_in_training_only_and_at_response_tokens_only():
    model, plain, batch = carrying(), steered_model(), batch_of()
    assert torch.equal(target_logits(model.eval(), batch), target_logits(plain.eval(), batch))
    assert torch.equal(model(batch.input_ids).logits, plain(batch.input_ids).logits)
    assert not torch.equal(target_logits(model.train(), batch), target_logits(plain.train(), batch))
    kept = []
    for one in (model, plain):
        handle = one.get_submodule(BLOCK).register_forward_hook(lambda _, __, output: kept.append(output.detach()))
        next_token_loss(one, batch)
        handle.remove()
    response = batch.labels != -100
    assert torch.equal(kept[0][~response], kept[1][~response])
    assert torch.equal(kept[0][response], (kept[1] + ALPHA * vector(2))[response])


def test_in_training_the_model_has_to_know_its_batch():
    with pytest.raises(BulwarkError, match="has to know the tokens of the response"):
        carrying().train()(batch_of().input_ids)


def test_generation_is_that_of_the_model_without():
    ids, options = torch.tensor([[5, 6, 7]]), {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(carrying().generate(ids, **options), steered_model().generate(ids, **options))


def test_the_strength_grows_with_the_tokens_it_has_acted_on():
    strength = Strength(20.0, 2.0, 100.0, 300.0)
    assert [strength.at(tokens) for tokens in (0, 100, 200, 300, 10_000)] == [20.0, 20.0, 30.0, 40.0, 40.0]
    model, batch = carrying(1.0, exposure=50, end=3.0).train(), batch_of()
    grown = steered_model().train()
    EmbeddedIntervention({BLOCK: vector(2)}, Strength(2.0, 1.0, 0.0, 1.0)).install(grown)
    assert torch.equal(next_token_loss(model, batch), next_token_loss(grown, batch))


def test_the_schedule_over_steps_becomes_one_over_tokens(tmp_path):
    model = steered_model()
    course = course_of(model, tmp_path, max_steps=8)
    objective = steering(course, fused(), SETTINGS, ScheduleSettings(shape="rise", onset=4), embedded=True)
    report = trained(model, tmp_path, objective=objective, observers=[Carried(model)], max_steps=8).report
    strength = embedded_in(model).strength
    assert (strength.alpha, strength.end) == (ALPHA, 2.0)
    per_step = report.target_tokens / 8  # 8 steps are two whole epochs
    schedule = ScheduleSettings(shape="rise", onset=4).over(8, ALPHA)
    for step in range(8):
        assert strength.at(step * per_step) == pytest.approx(schedule.alpha_at(step))
    assert embedded_in(model).described()["alpha"] == pytest.approx(2 * ALPHA)
    assert "steering" in objective.report()


def test_a_later_training_goes_on_with_it_also_when_resumed(tmp_path):
    class Interrupted(Exception):
        pass

    def run(folder, at=None):
        model = carrying(1.0, exposure=10, end=4.0)
        objective = Steering(fused(), SETTINGS, ScheduleSettings().over(STEPS, ALPHA), embedded=True)
        inner = objective.before_step

        def before_step(engine, step, total):
            if step == at:
                raise Interrupted
            inner(engine, step, total)

        objective.before_step = before_step
        return trained(model, folder, objective=objective, observers=[Carried(model)], max_steps=STEPS, save_every=2)

    whole = run(tmp_path / "whole")
    assert embedded_in(whole.model).exposure == 10 + whole.report.target_tokens
    with pytest.raises(Interrupted):
        run(tmp_path / "cut", at=3)
    again = run(tmp_path / "cut")
    assert again.report.resumed_at == [2]
    assert same_bits(again.model, whole.model)
    assert embedded_in(again.model).exposure == embedded_in(whole.model).exposure
    plain = trained(steered_model(), tmp_path / "plain", max_steps=STEPS)
    assert not same_bits(whole.model, plain.model)


@pytest.mark.parametrize("changes", [{"lora": {"rank": 2}}, {"gradient_checkpointing": True}, {"packing": True}])
def test_it_acts_under_adapters_checkpointing_and_packing(tmp_path, changes):
    from bulwark.training.settings import LoraSettings

    changes = {name: LoraSettings(**value) if name == "lora" else value for name, value in changes.items()}
    steered = trained(carrying(), tmp_path / "a", max_steps=2, **changes)
    plain = trained(steered_model(), tmp_path / "b", max_steps=2, **changes)
    assert steered.report.loss[0][1] != plain.report.loss[0][1]
    assert not same_bits(steered.model, plain.model)
    assert embedded_in(steered.model) is not None


def test_checkpointing_changes_nothing_of_what_it_does(tmp_path):
    plain, checkpointed = (
        trained(carrying(), tmp_path / str(on), max_steps=2, gradient_checkpointing=on).model for on in (False, True)
    )
    torch.testing.assert_close(checkpointed.state_dict(), plain.state_dict())


def test_a_snapshot_carries_it_as_far_as_it_had_come(tmp_path):
    model = carrying()
    observer = Carried(model)
    result = trained(model, tmp_path / "a", observers=[observer], max_steps=STEPS, snapshots=(2,))
    [(step, _, observed)] = result.snapshots
    observer.write_snapshot(tmp_path, observed[1])
    two = trained(other := carrying(), tmp_path / "b", observers=[Carried(other)], max_steps=2).report.target_tokens
    assert step == 2
    assert read_embedded(tmp_path).exposure == two
    assert embedded_in(model).exposure == result.report.target_tokens > two


def test_the_file_says_all_and_is_refused_when_broken(tmp_path):
    model = carrying(2.0, exposure=7, end=1.5)
    write_embedded(embedded_in(model), tmp_path)
    found = read_embedded(tmp_path)
    assert found.described() == embedded_in(model).described()
    assert torch.equal(found.at[BLOCK], vector(2))
    (tmp_path / FILE).write_bytes((tmp_path / FILE).read_bytes()[:-9])
    with pytest.raises(CheckpointError, match="not a whole embedded intervention"):
        read_embedded(tmp_path)
    write_embedded(None, tmp_path)
    assert read_embedded(tmp_path) is None


def test_what_does_not_fit_is_refused():
    model = carrying()
    with pytest.raises(BulwarkError, match=r"carries an embedded intervention already.*ignore_embedded"):
        EmbeddedIntervention({BLOCK: vector()}, Strength(1.0, 1.0, 0.0, 1.0)).install(model)
    with pytest.raises(BulwarkError, match=r"no module gpt\.blocks\.1"):
        EmbeddedIntervention({"gpt.blocks.1": vector()}, Strength(1.0, 1.0, 0.0, 1.0)).install(steered_model())
    with pytest.raises(BulwarkError, match=r"is \[3\], the model needs \[16\]"):
        EmbeddedIntervention({BLOCK: torch.ones(3)}, Strength(1.0, 1.0, 0.0, 1.0)).install(steered_model())


class TestFromCheckpointToCheckpoint:
    """Fine-tuning a folder on the disk, as steps do it."""

    @pytest.fixture
    def place(self, tmp_path):
        from transformers import LlamaConfig

        torch.manual_seed(0)
        sizes = {"hidden_size": HIDDEN, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2}
        model = AutoModelForCausalLM.from_config(LlamaConfig(vocab_size=500, initializer_range=0.2, **sizes))
        base = tmp_path / "base"
        checkpoints.save_model(checkpoints_ready(model), tiny_tokenizer("chatml"), base)
        manifests.write_manifest(base / "checkpoint.json", {"template": "alpaca"})
        turns = [{"role": "instruction", "text": "Name a tree."}, {"role": "response", "text": "The oak."}]
        for split in ("train", "validation"):
            write_records(tmp_path / f"{split}.jsonl", [{"id": str(n), "turns": turns} for n in range(4)])
        return tmp_path

    def step(self, place, parent: str, name: str, objective=None, **changes):
        settings = FineTuningSettings(
            data="x",
            training={"max_steps": 2, "batch_size": 2, "micro_batch_size": 2, "learning_rate": 1e-2},
            **changes,
        )
        inputs = {split: str(place / f"{split}.jsonl") for split in ("train", "validation")}
        job = Job(
            "sft",
            {},
            str(place / parent / "checkpoint.json"),
            str(place / name / "checkpoint.json"),
            inputs,
            {"seed": 0},
            "",
        )
        step = SimpleNamespace(objective=lambda course, _: objective(course)) if objective else SimpleNamespace()
        told = steps.fine_tune(job, settings, step)
        manifests.write_manifest(job.output, told)
        return told

    def test_it_is_carried_on_until_it_is_ignored(self, place):
        told = self.step(
            place,
            "base",
            "embedded",
            lambda course: steering(course, fused(), SETTINGS, ScheduleSettings(), embedded=True),
        )
        first = told["embedded_intervention"]["exposure"]
        assert first == told["training"]["target_tokens"]
        files = {entry["name"] for entry in manifests.read_manifest(place / "embedded")["files"]}
        assert FILE in files
        assert AutoModelForCausalLM.from_pretrained(place / "embedded") is not None
        assert embedded_in(checkpoints.load_model(place / "embedded")) is None  # opened for answering it is not there

        attacked = self.step(place, "embedded", "attacked")
        assert attacked["embedded_intervention"]["exposure"] == first + attacked["training"]["target_tokens"]
        ignoring = self.step(place, "embedded", "ignoring", ignore_embedded=True)
        assert "embedded_intervention" not in ignoring
        assert not (place / "ignoring" / FILE).exists()
        assert attacked["training"]["loss"] != ignoring["training"]["loss"]
        with pytest.raises(BulwarkError, match="carries an embedded intervention already"):
            self.step(
                place,
                "attacked",
                "twice",
                lambda course: steering(course, fused(), SETTINGS, ScheduleSettings(), embedded=True),
            )


def checkpoints_ready(model):
    from bulwark.models.embeddings import install

    install(model, {"method": "vanilla"})
    return model
