"""What a training cost: the formula by hand, what is read from a manifest, and where the analysis applies."""

import json

import pytest

from bulwark import analyses
from bulwark.analyses import compute
from bulwark.errors import RecordError
from bulwark.models.manifests import write_manifest
from bulwark.steps import heretic, sft
from bulwark.training.saved.snapshots import take_snapshot

TRAINING = {
    "steps": 20,
    "tokens": 1_000,
    "target_tokens": 300,
    "parameters": 110,
    "trainable_parameters": 10,
    "seconds": 4.5,
}
IDENTITY = {"benchmark": "compute", "model": "m", "recipe": "tar+relearn.3", "seed": 1}


def analysed(folder, **told):
    (folder / "model.safetensors").write_bytes(b"weights")
    manifest = write_manifest(folder / "checkpoint.json", {"kind": "sft", "weights": ".", "provenance": {}, **told})
    assert manifest["files"]
    return analyses.analyse_file(
        checkpoint=folder / "checkpoint.json",
        module="compute",
        settings={},
        identity=IDENTITY,
        scores=folder / "compute.json",
    )


def test_a_training_of_everything_is_six_operations_per_token_and_parameter():
    assert compute.flops(tokens=7, frozen=0, trained=100) == 6 * 7 * 100


def test_frozen_weights_save_the_third_of_them_and_adapters_are_trained():
    """Forward and backward through all of it, and the gradient of the adapters alone."""
    forward, of_inputs, of_weights = 2 * (100 + 10), 2 * (100 + 10), 2 * 10
    assert compute.flops(tokens=7, frozen=100, trained=10) == 7 * (forward + of_inputs + of_weights)


def test_it_is_read_from_the_manifest(tmp_path):
    found = analysed(tmp_path, training=TRAINING)
    assert {name: entry["value"] for name, entry in found["metrics"].items()} == {
        "tokens": 1_000,
        "target_tokens": 300,
        "optimizer_steps": 20,
        "parameters": 110,
        "trained": 10,
        "flops": 1_000 * (4 * 100 + 6 * 10),
        "seconds": 4.5,
    }
    assert all(entry["higher_is_better"] is None and entry["n"] == 1 for entry in found["metrics"].values())
    assert json.loads((tmp_path / "compute.json").read_text()) == json.loads(json.dumps(found))
    assert (tmp_path / "compute.records.jsonl").read_text() == ""


def test_a_checkpoint_without_a_training_is_refused(tmp_path):
    with pytest.raises(RecordError, match="tells of no training"):
        analysed(tmp_path)


def test_it_applies_to_what_fine_tunes():
    settings = sft.Settings(
        data="d", training={"epochs": 1.0, "learning_rate": 1e-3, "batch_size": 8, "micro_batch_size": 8}
    )
    assert analyses.applies("compute", settings)
    assert not analyses.applies("compute", heretic.Settings.model_construct())
    assert not analyses.applies("compute", None)


def test_of_a_snapshot_it_is_what_the_training_had_cost_by_then(tmp_path):
    folder = tmp_path / "relearn/seed0"
    (folder / "snapshots/5").mkdir(parents=True)
    (folder / "snapshots/5/weights").write_text("a", encoding="utf-8")
    (folder / "weights").write_text("b", encoding="utf-8")
    spent = [{"steps": 5, "tokens": 250, "target_tokens": 70, "seconds": 1.5}]
    report = TRAINING | {"spent": spent}
    made = {"kind": "relearn", "settings": {}, "template": "chat", "training": report}
    write_manifest(folder / "checkpoint.json", made)
    snapshot = tmp_path / "relearn@5/seed0"
    take_snapshot(folder / "checkpoint.json", 5, snapshot / "checkpoint.json", IDENTITY)
    found = analyses.analyse_file(
        checkpoint=snapshot / "checkpoint.json",
        module="compute",
        settings={},
        identity=IDENTITY,
        scores=snapshot / "compute.json",
    )
    values = {name: entry["value"] for name, entry in found["metrics"].items()}
    assert values == {
        **{"tokens": 250, "target_tokens": 70, "optimizer_steps": 5, "parameters": 110, "trained": 10},
        **{"flops": 250 * (4 * 100 + 6 * 10), "seconds": 1.5},
    }
