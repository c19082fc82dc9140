"""The three steps from a checkpoint to a checkpoint."""

from __future__ import annotations

import json
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from abliteration_samples import (
    Attacked,
    asked,
    assert_unedited,
    attack_settings,
    checkpoint,
    checksum,
    job_for,
    plain_ids,
    refusing_model,
    texts,
    unrefusing,
)
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from bulwark.abliteration import directed
from bulwark.abliteration.measure import markers
from bulwark.errors import BulwarkError, CheckpointError, RecordError
from bulwark.models import checkpoints, manifests
from bulwark.settings import validated
from bulwark.steps import heretic, iconoclast, refusal_direction

SETS = {"harmful": "harmful", "harmless": "harmless"}
SEARCH = {"trials": 16, "startup_trials": 8, "ei_candidates": 8, "trials_per_batch": 4, "max_new_tokens": 6}
SPACE = {
    "max_weight": {"attention": [0.8, 1.5], "mlp": [-0.25, 1.5]},
    "max_weight_position": [0.0, 1.0],
    "min_weight_distance": 2.0,
}
GIVEN: dict[str, dict[str, Any]] = {
    "heretic": {
        "prompts": SETS,
        "dtype": "float32",
        "directions": {"orthogonalise": True, "final_norm": True, "protect": "measured"},
        "edit": {"normalization": "full", "adapter_rank": 3},
        "space": SPACE,
        "search": SEARCH,
    },
    "iconoclast": {
        "prompts": SETS,
        "dtype": "float32",
        "directions": {
            "methods": ["mean", "median", "variance", "hybrid"],
            "orthogonalise": True,
            "benign_rank": 4,
        },
        "space": SPACE,
        "objectives": {"relative": True, "kl_target": 0.01, "overrefusal": 0.25},
        "search": SEARCH | {"rule": "iconoclast", "kl_gate": 1.0, "block": 8},
        "selection": {"kl_at_most": 0.2},
    },
    "refusal_direction": {
        "prompts": SETS,
        "dtype": "float32",
        "layers_below": 1.0,
        "kl_at_most": 0.5,
        "induced_at_least": -20.0,
        "max_new_tokens": 6,
    },
}
STEPS = {"heretic": heretic, "iconoclast": iconoclast, "refusal_direction": refusal_direction}
COMMON = {
    "processor_config.json",
    "comparison.json",
    "summary.json",
    "directions.safetensors",
    "model.safetensors",
    "config.json",
}
SEARCHED = {
    "trials.jsonl",
    "pareto.json",
    "study.journal",
    "geometry.json",
    "projections.jsonl",
    "adapter/adapter_config.json",
    "adapter/adapter_model.safetensors",
}


@pytest.fixture(scope="module")
def parent(tmp_path_factory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("parent"))


def run(kind: str, folder: Path, parent: Path, seed: int = 0, **changes: Any) -> dict[str, Any]:
    step = STEPS[kind]
    job = job_for(kind, folder, parent, seed)
    told = step.run(job, validated(step.Settings, GIVEN[kind] | changes, "here"))
    manifests.write_manifest(Path(job.output), {"model": "tiny", "recipe": kind, "seed": seed} | told)
    return told


@pytest.fixture(scope="module", params=list(STEPS))
def attacked(request, tmp_path_factory, parent) -> tuple[str, Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp(request.param) / "model"
    return request.param, folder, run(request.param, folder, parent)


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.relative_to(folder).parts[0] != "training"
    }


def read(path: Path) -> Any:
    text = path.read_text()
    return [json.loads(line) for line in text.splitlines()] if path.suffix == ".jsonl" else json.loads(text)


def without_times(content: Any) -> Any:
    """Without what a clock says."""
    if isinstance(content, dict):
        return {key: without_times(value) for key, value in content.items() if "seconds" not in key}
    return [without_times(value) for value in content] if isinstance(content, list) else content


def test_everything_is_written(attacked):
    kind, folder, _ = attacked
    wanted = COMMON | ({"candidates.jsonl"} if kind == "refusal_direction" else SEARCHED)
    assert wanted <= set(files_of(folder))
    listed = {entry["name"] for entry in manifests.read_manifest(folder)["files"]}
    assert wanted <= listed


def test_the_manifest_says_that_the_weights_are_abliterated_and_never_released(attacked):
    _, folder, told = attacked
    content = manifests.read_manifest(folder)
    assert content["abliterated"] is True
    assert content["release"] == "never"
    assert "Keep them on this machine" in content["notice"]
    assert content["template"] == "chat"
    assert content["changed_modules"]
    assert json.loads(json.dumps(told, allow_nan=False)) == told


def test_the_attacked_model_refuses_less_and_answers_as_was_measured(attacked):
    kind, folder, told = attacked
    summary = read(folder / "summary.json")
    assert summary["base"]["refusals"] == 16
    exported = summary["exported"]
    assert exported == told["abliteration"]["exported"]
    assert exported["n"] == 16
    assert exported["refusals"] < 16
    assert exported["equal_verdicts"] >= 0.95
    if kind != "refusal_direction":
        assert exported["kl"] == pytest.approx(exported["kl_of_trial"], rel=1e-2, abs=1e-5)
        assert exported["refusals"] == summary["chosen"]["refusals"]
    subject = Attacked(attack_settings(search={"rule": "arditi" if kind == "refusal_direction" else "heretic"}))
    subject.examiner.subject.model = checkpoints.load_model(folder, "float32").eval()
    answers = subject.examiner.answers([{}], "harmful")[0]
    assert sum(subject.examiner.refuses(one.response) for one in answers) == exported["refusals"]
    assert float(subject.examiner.divergences(1, None).mean()) == pytest.approx(exported["kl"], rel=1e-2)


def test_the_parent_is_as_it_was(attacked, parent):
    manifests.read_manifest(parent)
    model = checkpoints.load_model(parent.parent, "float32")
    assert checksum(model) == checksum(refusing_model())


def test_the_trials_tell_what_they_did_and_the_front_is_a_true_one(attacked):
    kind, folder, _ = attacked
    if kind == "refusal_direction":
        rows = read(folder / "candidates.jsonl")
        assert len(rows) == 2 * 3
        assert sum(row["chosen"] for row in rows) == 1
        best = next(row for row in rows if row["chosen"])
        assert best["refusal_score"] == min(row["refusal_score"] for row in rows if row["dropped"] is None)
        return
    rows = read(folder / "trials.jsonl")
    assert [row["number"] for row in rows] == list(range(16))
    assert sum(row["chosen"] for row in rows) == 1
    assert read(folder / "pareto.json") == [row for row in rows if row["pareto"]]
    whole = [row for row in rows if not row["gated"] and not row["dominated"]]
    for row in whole:
        values = (row["refusals"], row["overrefusals"] or 0, row["kl"])
        beaten = any(
            all(a <= b for a, b in zip(other, values, strict=True)) and other != values
            for other in ((one["refusals"], one["overrefusals"] or 0, one["kl"]) for one in whole)
        )
        assert row["pareto"] == (not beaten)
    assert {len(row["profile"]["attention"]) for row in rows} == {2}
    assert read(folder / "summary.json")["hypervolume"][-1] > 0


def test_harmful_completions_are_told_by_digests_alone(attacked):
    _, folder, _ = attacked
    rows = read(folder / "comparison.json")
    assert {row["side"] for row in rows} == {"harmful", "harmless"}
    for row in rows:
        hidden = row["side"] == "harmful"
        assert row["redacted"] == hidden
        assert isinstance(row["prompt"], dict) == hidden
        for name in ("base", "edited"):
            text = row[name]["text"]
            assert isinstance(text, dict) == hidden
            if not hidden:
                assert markers.refuses(text) == row[name]["refused"]
    assert "I'm sorry" not in json.dumps([row for row in rows if row["side"] == "harmful"])


@pytest.mark.filterwarnings("ignore")
def test_the_adapter_on_the_parent_is_near_the_exported_weights(attacked, parent):
    """Exact where the edit has rank 1; heretic's is its best approximation of rank 3."""
    kind, folder, told = attacked
    if kind == "refusal_direction":
        assert told["adapter"] is None
        assert not (folder / "adapter").exists()
        return
    base = AutoModelForCausalLM.from_pretrained(parent.parent, dtype=torch.float32).eval()
    ids = torch.tensor([plain_ids(prompt) for prompt in Attacked().prompts.harmful_search])
    with torch.inference_mode():
        before = base(ids).logits[:, -1]
        merged = checkpoints.load_model(folder, "float32").eval()(ids).logits[:, -1]
        adapted = PeftModel.from_pretrained(base, str(folder / "adapter")).eval()(ids).logits[:, -1]
    error = float((adapted - merged).norm() / (before - merged).norm())
    assert error < (1e-4 if kind == "iconoclast" else 0.35)


def test_the_directions_are_kept(attacked):
    kind, folder, _ = attacked
    found = load_file(folder / "directions.safetensors")
    expected = {
        "heretic": {"mean"},
        "iconoclast": {"mean", "median", "variance"},
        "refusal_direction": {"refusal_direction"},
    }
    assert set(found) == expected[kind]
    assert all(torch.isfinite(rows).all() for rows in found.values())


def test_the_same_seed_gives_the_same_files(attacked, tmp_path, parent):
    kind, folder, _ = attacked
    run(kind, tmp_path / "model", parent)
    ours, theirs = files_of(tmp_path / "model"), files_of(folder)
    assert ours.keys() == theirs.keys()
    for name in ours:
        if name in ("study.journal", "checkpoint.json"):
            continue
        if name.endswith((".json", ".jsonl")):
            one, two = (read(place / name) for place in (tmp_path / "model", folder))
            assert without_times(one) == without_times(two), name
        else:
            assert ours[name] == theirs[name], name


@pytest.mark.parametrize("kind", ["heretic", "iconoclast"])
def test_another_seed_is_another_search(tmp_path, parent, kind):
    run(kind, tmp_path / "one" / "model", parent, seed=0)
    run(kind, tmp_path / "two" / "model", parent, seed=1)
    one, two = (read(tmp_path / name / "model" / "trials.jsonl") for name in ("one", "two"))
    assert all(a["parameters"] != b["parameters"] for a, b in zip(one, two, strict=True))


def test_an_attack_that_was_killed_in_its_search_is_resumed(tmp_path, parent, monkeypatch):
    from bulwark.abliteration.search.trials import Examiner

    run("iconoclast", tmp_path / "whole" / "model", parent)
    examine, calls = Examiner.examine, []

    def dying(self, plans, known=()):
        calls.append(len(plans))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return examine(self, plans, known)

    monkeypatch.setattr(Examiner, "examine", dying)
    with pytest.raises(KeyboardInterrupt):
        run("iconoclast", tmp_path / "killed" / "model", parent)
    with pytest.raises(CheckpointError):
        checkpoints.load_model(tmp_path / "killed" / "model")
    run("iconoclast", tmp_path / "killed" / "model", parent)
    assert sum(calls) == 8 + 4 + 8
    one, two = (read(tmp_path / name / "model" / "trials.jsonl") for name in ("whole", "killed"))
    assert without_times(one) == without_times(two)
    weights = [(tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("whole", "killed")]
    assert weights[0] == weights[1]


@pytest.mark.parametrize("kind", list(STEPS))
def test_a_model_that_refuses_nothing_is_not_attacked_or_saved_as_it_is(tmp_path, kind):
    parent = unrefusing(tmp_path / "parent")
    with pytest.raises(BulwarkError, match=r"none of the harmful.*nothing to remove.*nothing_to_remove: unedited"):
        run(kind, tmp_path / "model", parent)
    folder = tmp_path / "unedited" / "model"
    told = run(kind, folder, parent, outcome={"nothing_to_remove": "unedited"})
    assert_unedited(folder, parent, told)
    assert (folder / "geometry.json").exists() == (kind != "refusal_direction")


@pytest.mark.parametrize("way", ["stop", "unedited"])
def test_of_prompts_that_are_filtered_none_need_be_refused(tmp_path, parent, way, monkeypatch):
    """The first token of no prompt for directions is one of a refusal, though the model does refuse."""
    monkeypatch.setattr(directed, "_refusal_tokens", lambda *given: [0])
    changes = {"outcome": {"nothing_to_remove": way}}
    if way == "stop":
        with pytest.raises(BulwarkError, match="of the 16 prompts of harmful_directions none is refused"):
            run("refusal_direction", tmp_path / "model", parent, **changes)
    else:
        told = run("refusal_direction", tmp_path / "model", parent, **changes)
        assert "harmful_directions" in told["abliteration"]["nothing_to_remove"]
        assert told["abliteration"]["base_refusals"] == 16


def test_prompts_of_both_uses_and_too_few_prompts_are_refused(tmp_path, parent):
    job = job_for("heretic", tmp_path / "model", parent)
    given = validated(heretic.Settings, GIVEN["heretic"], "here")
    few = validated(heretic.Settings, GIVEN["heretic"] | {"prompts": SETS | {"counts": {"harmful_search": 99}}}, "here")
    with pytest.raises(RecordError, match=r"holds 16 prompts; 99 are asked for.*prompts\.counts\.harmful_search"):
        heretic.run(job, few)
    shared = Path(job.inputs["harmful_search"])
    shared.write_text(shared.read_text() + Path(job.inputs["harmful_directions"]).read_text().splitlines()[0] + "\n")
    with pytest.raises(RecordError, match="take other splits"):
        heretic.run(job, given)


@pytest.mark.parametrize("kind", ["heretic", "refusal_direction"])
def test_the_attacked_model_is_gone_when_the_exported_one_is_loaded(tmp_path, parent, kind, monkeypatch):
    """A model that fills the memory can be attacked: there is one at a time."""
    loaded: list[weakref.ref] = []
    original = checkpoints.load_model

    def load_model(*given: Any, **options: Any) -> Any:
        assert all(model() is None for model in loaded)
        model = original(*given, **options)
        loaded.append(weakref.ref(model))
        return model

    monkeypatch.setattr(checkpoints, "load_model", load_model)
    run(kind, tmp_path / "model", parent)
    assert len(loaded) == 2


def by_hand(side: str, after: int) -> torch.Tensor:
    """Mean residuals [tokens from the end, layers + 1, hidden] of the prompts and `after` tokens of greedy answers."""
    model = refusing_model(installed=False)
    parts = []
    for prompt in asked(texts(side, "directions")):
        ids = plain_ids(prompt)
        for _ in range(after):
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        states = model(torch.tensor([ids]), output_hidden_states=True).hidden_states
        parts.append(torch.stack([state[0, -5:].flip(0) for state in states], dim=1).detach())
    return torch.stack(parts).double().mean(0)


def test_directions_can_be_measured_some_tokens_into_the_answer(tmp_path, parent):
    prompts = SETS | {"after": 2}
    difference = by_hand("harmful", 2) - by_hand("harmless", 2)
    short = SEARCH | {"trials": 1, "startup_trials": 1}
    run("heretic", tmp_path / "searched", parent, prompts=prompts, directions={"final_norm": True}, search=short)
    found = load_file(tmp_path / "searched" / "directions.safetensors")["mean"].double()
    expected = difference[0] / difference[0].norm(dim=-1, keepdim=True)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    at_the_prompt = (by_hand("harmful", 0) - by_hand("harmless", 0))[0]
    assert float((found[1:] * at_the_prompt[1:] / at_the_prompt[1:].norm(dim=-1, keepdim=True)).sum(-1).max()) < 0.99
    run("refusal_direction", tmp_path / "chosen", parent, prompts=prompts)
    rows = read(tmp_path / "chosen" / "candidates.jsonl")
    assert [(row["position"], row["layer"]) for row in rows] == [(-1 - n, layer) for n in range(5) for layer in (0, 1)]
    best = next(row for row in rows if row["chosen"])
    vector = load_file(tmp_path / "chosen" / "directions.safetensors")["refusal_direction"].double()
    torch.testing.assert_close(vector, difference[-1 - best["position"], best["layer"]], atol=1e-4, rtol=0)
