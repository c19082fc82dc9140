"""Plans of steered recipes: the vectors of the parent, and the sibling in which an onset is found."""

import pytest

MINIATURE = ("--configfile", "config/miniature.yaml", "--")


def test_a_steered_step_asks_for_the_vectors_of_its_parent(checkout):
    made = checkout.planned_outputs(*MINIATURE, "results/checkpoints/miniature/ise+steer/seed2/checkpoint.json")
    assert "results/vectors/miniature/ise/seed2/rude.safetensors" in made
    assert "results/data/miniature_trait_rude/train.jsonl" in made


def test_an_onset_is_found_in_what_the_other_step_makes_of_the_same_parent(checkout):
    for prefix in ("", "ise+"):
        target = f"results/checkpoints/miniature/{prefix}pis_detected/seed1/checkpoint.json"
        made = checkout.planned_outputs(*MINIATURE, target)
        assert f"results/checkpoints/miniature/{prefix}steer/seed1/checkpoint.json" in made
        assert target in made


def test_an_attack_on_an_embedded_checkpoint_is_a_chain(checkout):
    plan = checkout.plan(*MINIATURE, "results/checkpoints/miniature/pis_embedded+sft/seed0/checkpoint.json")
    assert plan["apply_step"] == 2
    assert plan["extract_vectors"] == 1


@pytest.mark.parametrize(
    ("settings", "target", "told"),
    [
        (
            "steps: {steer: {models: {miniature: {settings: {vectors: {layers: [4]}}}}}}",
            "checkpoints/miniature/steer/seed0/checkpoint.json",
            "config/steps/steer.yaml, vectors.layers: 4 is not a layer key",
        ),
        (
            "steps: {steer: {models: {miniature: {settings: {analysis: {layers: [0]}}}}}}",
            "checkpoints/miniature/steer/seed0/checkpoint.json",
            "config/steps/steer.yaml, analysis.layers: 0 is not a layer key",
        ),
        (
            "steps: {idp: {models: {miniature: {settings: {preservation: {layers: [9]}}}}}}",
            "checkpoints/miniature/idp/seed0/checkpoint.json",
            "config/steps/idp.yaml, preservation.layers: 9, but the model has 4 blocks",
        ),
        (
            "benchmarks: {detectors: {models: {miniature: {settings: {vectors: {layers: [4]}, projections: null}}}}}",
            "scores/miniature/base/seed0/detectors.json",
            "config/benchmarks/detectors.yaml, vectors.layers: 4 is not a layer key",
        ),
        (
            "projections: {miniature_clean_rude: {settings: {vectors: {layers: [4]}}}}",
            "projections/miniature/base/seed0/miniature_clean_rude.parquet",
            "config/projections/miniature_clean_rude.yaml, vectors.layers: 4 is not a layer key",
        ),
        (
            "traits: {rude: {choice: {candidates: [4]}}}",
            "vectors/miniature/base/seed0/rude.layers.json",
            "config/traits/rude.yaml, choice.candidates: 4 is not a layer key",
        ),
    ],
)
def test_a_layer_that_the_model_does_not_have_is_refused_when_it_is_planned(settings, target, told, checkout):
    (checkout.folder / "overlay.yaml").write_text(settings)
    done = checkout.snakemake(
        "--dry-run", "--configfile", "config/miniature.yaml", "overlay.yaml", "--", f"results/{target}", check=False
    )
    assert done.returncode != 0
    assert told in done.stdout
