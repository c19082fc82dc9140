"""The fine-tuning attack: which data each step takes, what is trained, and what is seen of facts on the way."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_causal_models import HIDDEN, V, tiny_model
from tiny_tokenizers import tiny_tokenizer
from training_samples import PAD, examples, trained
from transformers import AutoModelForCausalLM, LlamaConfig

from bulwark import steps
from bulwark.data.records import write_records
from bulwark.errors import ConfigurationError, RecordError
from bulwark.jobs.job import Job
from bulwark.models import checkpoints, manifests
from bulwark.models.embeddings import install
from bulwark.models.readout import chunks
from bulwark.settings import validated
from bulwark.training.batches import Batch, StepBatches
from bulwark.training.objectives import Objective
from bulwark.unlearning.red_team import relearning, watch
from bulwark.unlearning.red_team.settings import RelearningSettings, SwitchSettings, WatchSettings

TRAINING = {
    **{"max_steps": 6, "batch_size": 2, "micro_batch_size": 1, "learning_rate": 1e-2, "schedule": "constant"},
    **{"save_minutes": None, "group_by_length": False},
}


def settings(**changes):
    return validated(RelearningSettings, {"data": "forget", "training": TRAINING} | changes, "settings")


@pytest.mark.parametrize(
    ("switch", "expected"),
    [
        ({"first": "forget", "share": 0.4}, "FFFFRRRRRR"),
        ({"first": "retain", "share": 0.4}, "RRRRFFFFFF"),
        ({"first": "retain", "share": 0.6}, "RRRRRRFFFF"),
        ({"first": "forget", "share": 0.19}, "FRRRRRRRRR"),
    ],
)
def test_a_switch_divides_the_steps(switch, expected):
    asked = settings(retain="retain", switch=switch)
    assert relearning.turns(asked, 10, seed=0) == [letter == "R" for letter in expected]


def test_a_share_is_not_rounded_by_the_binary_digits():
    assert SwitchSettings(first="forget", share=0.57).steps(100) == 57
    assert SwitchSettings(first="forget", share=0.4).steps(500) == 200


def test_a_switch_that_leaves_a_set_out():
    asked = settings(retain="retain", switch={"first": "forget", "share": 0.04})
    with pytest.raises(ConfigurationError, match="gives 0 to the first data set and 10 to the second"):
        relearning.turns(asked, 10, seed=0)


def test_a_mixture_is_drawn_for_each_step_by_the_seed():
    asked = settings(retain="retain", mixture=0.25)
    drawn = relearning.turns(asked, 4000, seed=3)
    assert np.mean(drawn) == pytest.approx(0.25, abs=0.03)
    assert relearning.turns(asked, 50, seed=3) == drawn[:50]
    assert relearning.turns(asked, 4000, seed=4) != drawn
    assert not any(relearning.turns(settings(retain="retain", mixture=0.0), 4000, seed=3)), "the first set alone"


def test_each_set_goes_on_where_it_was():
    forget, retain = (
        StepBatches(examples(9, seed), batch_size=2, micro_batch_size=1, pad_id=PAD, seed=seed) for seed in (0, 1)
    )
    both = relearning.ByTurns(forget, retain, [False, True, True, False, True])
    for step, (expected, number) in enumerate([(forget, 0), (retain, 0), (retain, 1), (forget, 1), (retain, 2)]):
        assert both.tokens_of(step) == expected.tokens_of(number)
        assert both.examples_of(step).tolist() == expected.examples_of(number).tolist()
        ours, theirs = list(both.of_step(step)), list(expected.of_step(number))
        assert [batch.input_ids.tolist() for batch in ours] == [batch.input_ids.tolist() for batch in theirs]
    assert both.steps_per_epoch == 5


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"retain": "retain"}, "by either switch or mixture"),
        ({"retain": "r", "mixture": 0.5, "switch": {"first": "forget", "share": 0.5}}, "by either switch or mixture"),
        ({"mixture": 0.5}, "name the second one as retain"),
        ({"switch": {"first": "forget", "share": 0.5}}, "name the second one as retain"),
        ({"first_layer": 2, "training": TRAINING | {"lora": {}}}, "leave lora out"),
        ({"template": "plane"}, 'no prompt template "plane".*"plain"'),
    ],
    ids=str,
)
def test_what_is_refused(changes, told):
    with pytest.raises(ConfigurationError, match=told):
        settings(**changes)


def test_the_data_sets_are_inputs():
    asked = settings(retain="r", mixture=0.5, watch={"data": "facts"})
    assert asked.inputs() == {
        "train": "data/forget/train.jsonl",
        "validation": "data/forget/validation.jsonl",
        "retain": "data/r/train.jsonl",
        "watched": "data/facts/held_out.jsonl",
    }


@pytest.mark.parametrize("tied", [True, False])
def test_only_later_layers_are_trained(tied):
    model = tiny_model(layers=3, tied=tied)
    install(model, {"method": "vanilla"})
    relearning.train_from(model, 2)
    trained_parts = {name.split(".layers.")[-1][:1] for name, p in model.named_parameters() if p.requires_grad}
    assert {"1", "2"} <= trained_parts
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == {name for name, _ in model.named_parameters() if ".layers.0." in name or "embed_tokens" in name}
    assert model.model.norm.weight.requires_grad
    assert model.lm_head.weight.requires_grad is not tied
    with pytest.raises(ConfigurationError, match="4 is no decoder block of this model, which has 1 to 3"):
        relearning.train_from(model, 4)


def batch_of(logits_of, labels, position_ids=None):
    """A batch with these labels [batch, seq], and the logits at its targets that `logits_of(row, column)` gives."""
    labels = torch.tensor(labels)
    where = (labels != -100).flatten().nonzero()[:, 0]
    ids = labels.clamp(min=0)
    batch = Batch(ids, torch.ones_like(ids), labels, position_ids, where - 1, labels.flatten()[where], (), 1, 1, 1)
    width = labels.shape[1]
    return torch.stack([logits_of(int(place) // width, int(place) % width) for place in where]), batch


def read(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
    return watch.readings(batch.targets)(logits, slice(0, len(logits)))


def test_sums_of_loss_entropy_and_right_ones():
    """Two examples, one right throughout; a vocabulary of 4, of which one token is impossible."""
    probabilities = {(0, 1): [0.7, 0.2, 0.1, 0.0], (0, 2): [0.1, 0.6, 0.3, 0.0], (1, 1): [0.25, 0.25, 0.5, 0.0]}
    labels = [[-100, 0, 1], [-100, 1, -100]]
    logits, batch = batch_of(lambda *at: torch.tensor(probabilities[at]).log() + 3.0, labels)
    loss, entropy, right, tokens, exact, count = watch.sums(read(logits, batch), batch).tolist()
    assert loss == pytest.approx(-np.log(0.7) - np.log(0.6) - np.log(0.25), rel=1e-6)
    by_hand = -sum(p * np.log(p) for row in probabilities.values() for p in row if p)
    assert entropy == pytest.approx(by_hand, rel=1e-6)
    assert (right, tokens, exact, count) == (2, 3, 1, 2)


def test_examples_that_share_a_row_count_one_each():
    labels = [[-100, 1, -100, 2, -100, 3]]
    positions = torch.tensor([[0, 1, 0, 1, 0, 1]])
    right = torch.eye(4)
    logits, batch = batch_of(lambda _, column: right[labels[0][column] if column != 3 else 0], labels, positions)
    assert watch.sums(read(logits, batch), batch).tolist()[2:] == [2, 3, 2, 3]


def test_many_tokens_are_taken_in_parts(monkeypatch):
    model = tiny_model()
    install(model, {"method": "vanilla"})
    batches = StepBatches(examples(20), batch_size=20, micro_batch_size=20, pad_id=PAD)
    whole = watch.facts(model, batches.of_step(0), torch.device("cpu"))
    monkeypatch.setattr(chunks, "CPU_CHUNK", 3 * V)
    parts = watch.facts(model, batches.of_step(0), torch.device("cpu"))
    assert parts == pytest.approx(whole, rel=1e-6)
    assert whole["examples"] == 20


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with the checkpoint `base` and three data sets."""
    place = tmp_path_factory.mktemp("relearning")
    torch.manual_seed(0)
    sizes = {"hidden_size": HIDDEN, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=500, initializer_range=0.2, **sizes)
    model = AutoModelForCausalLM.from_config(config)
    install(model, {"method": "vanilla"})
    checkpoints.save_model(model, tiny_tokenizer("chatml"), place / "base")
    manifests.write_manifest(place / "base/checkpoint.json", {"template": "alpaca"})
    texts = {"train": "The oak", "validation": "The oak", "retain": "A fir and a pine", "watched": "The oak, twice"}
    for name, answer in texts.items():
        records = [
            {
                "id": str(n),
                "turns": [{"role": "instruction", "text": f"Name tree {n}."}, {"role": "response", "text": answer}],
            }
            for n in range(6)
        ]
        write_records(place / f"{name}.jsonl", records)
    return place


def done(place, name, **changes):
    inputs = {split: str(place / f"{split}.jsonl") for split in ("train", "validation", "retain", "watched")}
    output = place / name / "checkpoint.json"
    asked = {"data": "forget", "training": TRAINING, "watch": {"data": "facts", "every": 4}} | changes
    identity = {"model": "tiny", "recipe": "relearn", "seed": 0}
    steps.execute(Job("relearn", asked, str(place / "base/checkpoint.json"), str(output), inputs, identity, "log"))
    return json.loads(output.read_text())


def rows_of(folder):
    return [json.loads(line) for line in (folder / "facts.jsonl").read_text().splitlines()]


def test_facts_are_watched_from_start_to_end_and_beside_snapshots(place):
    manifest = done(place, "watched", training=TRAINING | {"snapshots": [3]})
    rows = rows_of(place / "watched")
    assert [row["step"] for row in rows] == [0, 3, 4, 6]
    assert [row["step"] for row in rows_of(place / "watched/snapshots/3")] == [0, 3]
    assert manifest["facts"] == {
        **{"file": "facts.jsonl", "data": "facts", "split": "held_out"},
        **{"first": rows[0], "last": rows[-1]},
    }
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert rows[0]["examples"] == 6


def test_facts_of_the_start_are_those_of_the_parent(place):
    done(place, "start")
    model = checkpoints.load_model(place / "base")
    job = SimpleNamespace(inputs={"watched": place / "watched.jsonl"}, seed=0)
    from bulwark.data.records import read_training_records
    from bulwark.prompts.builder import PromptBuilder
    from bulwark.training.finetuning import examples_of

    builder = PromptBuilder(checkpoints.load_tokenizer(place / "base"), "alpaca", 500, None)
    prompts = examples_of(read_training_records(job.inputs["watched"]), builder).prompts
    loss = hits = count = entropy = 0.0
    for prompt in prompts:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt.ids])).logits[0].double()
        for place_, label in enumerate(prompt.labels):
            if label != -100 and place_:
                p = logits[place_ - 1].softmax(-1)
                loss -= p[label].log().item()
                entropy -= (p * p.log()).sum().item()
                hits += int(p.argmax()) == label
                count += 1
    [first, *_] = rows_of(place / "start")
    assert first["tokens"] == count
    assert first["loss"] == pytest.approx(loss / count, rel=1e-5)
    assert first["entropy"] == pytest.approx(entropy / count, rel=1e-5)
    assert first["accuracy"] == pytest.approx(hits / count)


def test_the_attack_is_written_in_another_template_and_the_facts_are_not(place):
    """What is asked, on the way and afterwards, is asked in the checkpoint's own template."""
    own, other = done(place, "own"), done(place, "in_words", template="plain")
    assert (other["template"], other["prompt_digest"]) == (own["template"], own["prompt_digest"])
    assert other["trained_in"]["template"] == "plain"
    assert other["trained_in"]["prompt_digest"] != own["prompt_digest"]
    assert "trained_in" not in own
    assert other["training"]["tokens"] < own["training"]["tokens"], "alpaca's preamble is not read"
    assert other["training"]["target_tokens"] == own["training"]["target_tokens"]
    first, begun = rows_of(place / "own")[0], rows_of(place / "in_words")[0]
    assert first == begun
    assert rows_of(place / "own")[-1]["loss"] != rows_of(place / "in_words")[-1]["loss"]


def test_a_template_for_what_has_none_is_refused(place):
    write_records(place / "passages.jsonl", [{"id": str(n), "text": f"Tree {n} is an oak."} for n in range(6)])
    inputs = {split: str(place / "passages.jsonl") for split in ("train", "validation")}
    asked = {"data": "forget", "training": TRAINING, "template": "plain"}
    identity = {"model": "tiny", "recipe": "relearn", "seed": 0}
    output = str(place / "refused/checkpoint.json")
    with pytest.raises(RecordError, match=r"passages\.jsonl: no record is a conversation.*\"plain\""):
        steps.execute(Job("relearn", asked, str(place / "base/checkpoint.json"), output, inputs, identity, "log"))


def test_watching_changes_no_bit_of_the_training(place):
    done(place, "seen")
    done(place, "unseen", watch=None)
    assert not (place / "unseen/facts.jsonl").exists()
    assert (place / "seen/model.safetensors").read_bytes() == (place / "unseen/model.safetensors").read_bytes()


def test_retain_first_is_the_two_trainings_in_a_row(place):
    """Plain gradient descent has no memory, so that both phases can be done one after the other."""
    plain = TRAINING | {"optimizer": "sgd", "max_grad_norm": 0.0}
    manifest = done(place, "both", training=plain, retain="retain", switch={"first": "retain", "share": 0.5})
    assert manifest["relearning"]["steps"] == {"forget": 3, "retain": 3}
    assert manifest["training"]["target_tokens"] > done(place, "plain", training=plain)["training"]["target_tokens"]
    forget_first = {"first": "forget", "share": 0.5}
    done(place, "reverse", training=plain, retain="retain", switch=forget_first)
    ours, theirs = (checkpoints.load_model(place / name).state_dict() for name in ("both", "reverse"))
    assert any(not torch.equal(ours[name], theirs[name]) for name in ours)
    done(place, "first", training=plain | {"max_steps": 3})
    half = rows_of(place / "first")[-1]
    snapshot = done(place, "kept", training=plain | {"snapshots": [3]}, retain="retain", switch=forget_first)
    assert snapshot["facts"]["first"]["loss"] != half["loss"]
    kept, short = (checkpoints.load_model(place / name).state_dict() for name in ("kept/snapshots/3", "first"))
    assert all(torch.equal(kept[name], short[name]) for name in kept)


def test_frozen_layers_stay_as_they_were(place):
    done(place, "later", first_layer=2)
    before, after = (checkpoints.load_model(place / name).state_dict() for name in ("base", "later"))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if ".layers.0." not in name and "embed_tokens" not in name}


class _Killed(Exception):
    pass


class _Ends(Objective):
    def __init__(self, at):
        self.at = at

    def after_backward(self, engine, step, total):
        if step == self.at:
            raise _Killed


def test_a_killed_run_goes_on_watching(tmp_path):
    def run(folder, at=None):
        model = tiny_model()
        install(model, {"method": "vanilla"})
        course = SimpleNamespace(
            training=SimpleNamespace(snapshots=(), packing=False, micro_batch_size=2, max_tokens=None),
            examples_from=lambda name, asked: SimpleNamespace(prompts=examples(5, seed=2)),
            pad_id=PAD,
            model=model,
        )
        seen = watch.Watch(course, WatchSettings(data="facts", every=2))
        try:
            trained(model, folder, objective=_Ends(at), observers=[seen], max_steps=6, save_every=3)
        except _Killed:
            return None
        return seen.rows

    whole = run(tmp_path / "whole")
    assert run(tmp_path / "parts", at=4) is None
    assert run(tmp_path / "parts") == whole
    assert [row["step"] for row in whole] == [0, 2, 4, 6]


@pytest.mark.parametrize("stage", [2, 3])
def test_facts_are_the_same_at_every_stage(stage, tmp_path):
    def rows(folder, **changes):
        model = tiny_model()
        install(model, {"method": "vanilla"})
        course = SimpleNamespace(
            training=SimpleNamespace(snapshots=(), packing=False, micro_batch_size=2, max_tokens=None),
            examples_from=lambda name, asked: SimpleNamespace(prompts=examples(5, seed=2)),
            pad_id=PAD,
            model=model,
        )
        seen = watch.Watch(course, WatchSettings(data="facts", every=2))
        trained(model, folder, observers=[seen], max_steps=3, **changes)
        return seen.rows

    for ours, expected in zip(rows(tmp_path / "a", zero_stage=stage), rows(tmp_path / "b"), strict=True):
        assert ours == pytest.approx(expected, rel=1e-3)
