"""Every model that config/models lists can run: a small one of its class, through every kind of step and of benchmark.

What the jobs call is called, with what the plan says for that model; tests/helpers/listed_runs.py cuts it down.
"""

from __future__ import annotations

import gc
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from listed_models import REPOSITORIES, write_repository
from listed_records import CONFIG, RECORDS
from listed_runs import TRAINING, Listed, kinds, opened_once, representative, tokenizers_once
from safetensors.torch import load_file

from bulwark import benchmarks
from bulwark.abliteration.measure.markers import refuses
from bulwark.data.records import Turn
from bulwark.evaluation import answer as answering
from bulwark.models import checkpoints, manifests, origin
from bulwark.models.decoding import Decoding
from bulwark.models.open import open_model

LISTED = sorted(path.stem for path in (CONFIG / "models").glob("*.yaml") if path.stem != "miniature")
# What cannot be run here, and why.
LEFT_OUT = {"agentdojo": "needs the package agentdojo, an extra; test_agentdojo.py runs it where it is installed"}
# Kinds of steps that leave the weights as they are.
WITHOUT_EDIT = {"prompted"}
ATTACKS = {"gradient_edit", "heretic", "iconoclast", "refusal_direction"}
ASKED = [Turn(role="system", text="be kind"), Turn(role="instruction", text="count the dog")]


def small(name: str, revision: str, folder: Path, *more: object) -> Path:
    """The stand-in of a repository, as `data.downloads.fetch` would get the real one."""
    assert name in REPOSITORIES, f"Add {name}, which config/models names, to tests/helpers/listed_models.py."
    return write_repository(name, Path(folder))


@pytest.fixture(scope="module", params=LISTED)
def listed(request, tmp_path_factory):
    """The model in a folder of its own, where what the tests need is made once."""
    known = manifests.provenance()
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(tmp_path_factory.mktemp(request.param))
        patched.setattr(origin, "fetch", small)
        patched.setattr(manifests, "provenance", lambda started=None: known)  # which asks git each time
        patched.setattr(checkpoints, "load_tokenizer", tokenizers_once())
        patched.setattr(answering, "open_model", opened_once())  # of benchmarks alone: attacks edit what they open
        yield Listed(request.param)
    gc.unfreeze()


@pytest.fixture(autouse=True)
def frozen():
    """DeepSpeed and the check after a training collect garbage six times, each time in a million imported objects."""
    gc.freeze()


def weights_of(manifest: Path) -> dict[str, torch.Tensor]:
    folder = manifests.weights_folder(manifest)
    return {name: tensor for path in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(path).items()}


def losses_of(told: object) -> list[float]:
    """Every loss that a manifest tells of."""
    return [loss for points in (told["loss"], told["validation"]) for _, loss in points if loss is not None]


def detected(manifest: Path) -> list[dict[str, Any]]:
    """What a step that screens rows wrote of each; nothing of other steps."""
    path = manifest.parent / "detections.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


@pytest.mark.parametrize("kind", kinds("steps"))
def test_every_kind_of_step_makes_a_checkpoint(listed, kind):
    made, parent = listed.apply(kind)
    told = manifests.read_manifest(made)
    assert (told["kind"], told["model"]) == (kind, listed.model)
    before, after = weights_of(parent), weights_of(made)
    changed = before.keys() != after.keys() or any(not torch.equal(before[name], after[name]) for name in before)
    rows = detected(made)
    assert "not_finite" not in {row["decision"] for row in rows}
    learns = any(row["weight"] for row in rows) if rows else kind not in WITHOUT_EDIT
    assert changed == learns  # a random model may have rows of both kinds, or of one
    assert all(torch.isfinite(tensor).all() for tensor in after.values() if tensor.is_floating_point())
    if "training" in told:
        losses = losses_of(told["training"])
        assert told["training"]["steps"] == TRAINING["max_steps"]
        assert losses
        assert all(map(math.isfinite, losses))
    else:  # what a training has saved is opened again by the training
        opened = open_model(made, listed.entity.dtype)
        [answer] = opened.generate([("asked", opened.builder.prompt(ASKED))], Decoding(max_new_tokens=2))
        assert 0 <= answer.tokens <= 2
    if kind in ATTACKS:
        summary = json.loads((made.parent / "summary.json").read_text(encoding="utf-8"))
        assert summary["base"]["refusals"] == summary["base"]["n"] == RECORDS


@pytest.mark.parametrize("kind", kinds("benchmarks"))
def test_every_benchmark_measures_a_checkpoint(listed, kind):
    """On the checkpoint of ASIDE, whose tokens have roles."""
    if kind in LEFT_OUT:
        pytest.skip(LEFT_OUT[kind])
    told, records, rows = listed.measure("aside", representative(listed.model, "benchmarks", kind))
    assert told["n"] == len(rows) == len(records) > 0
    assert [row["id"] for row in rows] == [record.id for record in records]
    for declared in benchmarks.module_of(kind).METRICS:
        assert any(re.fullmatch(rf"{declared}(_\d+)?", name) for name in told["metrics"]), declared
    for name, found in told["metrics"].items():
        if found["value"] is None:
            assert found["n"] == 0, f"{name}: null, though records count for it"
        else:
            assert math.isfinite(found["value"]), name


def test_the_small_model_refuses_what_attacks_ask_it(listed):
    """As far as rounding: attacks need a model that refuses harmful requests and answers the others."""
    manifest = listed.need(f"results/models/{listed.model}/model.json")
    opened = open_model(manifest, listed.entity.dtype)
    prompts = {
        (name, record.id): opened.builder.prompt(listed.asked(record.prompt))
        for name in ("harmful_behaviors", "harmless_alpaca")
        for record in listed.records(name, "train")
    }
    answers = opened.generate([(str(key), prompt) for key, prompt in prompts.items()], Decoding(max_new_tokens=5))
    said = {key: answer.response for key, answer in zip(prompts, answers, strict=True)}
    for rule in ("heretic", "iconoclast", "arditi"):
        assert {key for key, text in said.items() if refuses(text, rule)} == {k for k in said if "harmful" in k[0]}
