"""Steering's whole path at the smallest configuration: vectors, projections, trainings, detectors, tables, claims."""

import json

import pytest

from tests.conftest import STEERING

pytestmark = pytest.mark.slow


def manifest(checkout, recipe):
    path = checkout.folder / f"results/checkpoints/miniature/{recipe}/seed0/checkpoint.json"
    return json.loads(path.read_text(encoding="utf-8"))


def test_a_steered_checkpoint_tells_its_vectors_and_its_strength(steered):
    told = manifest(steered, "steer")["steering"]
    assert told["vectors"]["layers"]["1"]["fused_norm"] > 0
    assert told["schedule"]["mean_alpha"] == told["schedule"]["alpha"]
    assert len(told["gradient_cosine"]) == 3


def test_the_report_of_a_run_is_in_its_manifest(steered):
    """What the authors' README asks of a run: model, data, training, systems, vectors, mode, versions, commit."""
    told = manifest(steered, "delta_loss")
    assert {"model", "recipe", "seed", "kind", "settings", "parent", "inputs", "provenance"} <= set(told)
    assert {"examples", "truncated", "template", "training", "steering"} <= set(told)
    assert told["settings"]["vectors"] == {
        "traits": ["rude"], "layers": [1], "fusion": "norm_aligned", "weights": None, "pool": "response_mean"
    }  # fmt: skip
    assert {"vector_rude", "train", "validation"} <= set(told["inputs"])
    assert {"versions", "git", "hardware"} <= set(told["provenance"])
    assert {"bulwark", "torch", "transformers", "deepspeed", "peft"} <= set(told["provenance"]["versions"])


@pytest.mark.parametrize("recipe", ["delta_loss", "state_aware"])
def test_a_detector_tells_of_every_row_once_per_step(steered, recipe):
    folder = steered.folder / f"results/checkpoints/miniature/{recipe}/seed0"
    rows = [json.loads(line) for line in (folder / "detections.jsonl").read_text().splitlines()]
    assert len(rows) == 48
    assert len({row["row_id"] for row in rows}) == 48
    assert {row["level"] for row in rows} <= {0, 1, 2}
    assert {row["opt_step"] for row in rows} == {0, 1, 2}


def test_what_was_trained_without_steering_has_no_vectors(steered):
    assert "vector_rude" not in manifest(steered, "sft")["inputs"]
    assert manifest(steered, "sft")["parent"]["path"].endswith("base/seed0/checkpoint.json")


def test_the_table_and_the_claim_are_there(steered):
    table = (steered.folder / "results/reports/steering/tables/steering_prevention.md").read_text(encoding="utf-8")
    assert all(label in table for label in ("static steering", "fine-tuning on clean data", "trait"))
    (claim,) = json.loads((steered.folder / "results/reports/steering/claims.json").read_text())
    assert claim["id"] == "steering_prevents"
    assert claim["verdict"] in ("reproduced", "not reproduced", "contradicted", "undecided")


def test_detectors_have_areas_under_the_roc(steered):
    scores = json.loads((steered.folder / "results/scores/miniature/base/seed0/detectors.json").read_text())
    for score in ("delta_mean", "delta_min", "D1", "D2", "probe_cos", "probe_proj", "p_cur", "dp"):
        metric = scores["metrics"][f"auroc_{score}"]
        assert 0 <= metric["interval"][0] <= metric["value"] <= metric["interval"][1] <= 1


def test_a_second_run_does_nothing(steered):
    assert steered.plan("--configfile", *STEERING, "--", "all") == {}
