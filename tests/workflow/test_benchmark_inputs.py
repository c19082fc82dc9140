"""Benchmarks may ask for files beside checkpoint and records; the workflow makes them."""


def test_examples_vectors_and_projections_are_planned(checkout):
    asked = [f"results/scores/qwen2.5-7b-instruct/sft/seed1/{name}.json" for name in ("mmlu", "detectors")]
    outputs = checkout.planned_outputs(*asked)
    assert "results/data/mmlu/dev.jsonl" in outputs
    # The base model's vectors and projections, though it is a fine-tuned model that is looked at.
    assert "results/vectors/qwen2.5-7b-instruct/base/seed1/evil.safetensors" in outputs
    assert "results/projections/qwen2.5-7b-instruct/base/seed1/persona_mixture.parquet" in outputs


def test_a_wrong_name_among_them_is_told_before_any_job(checkout):
    overlay = checkout.folder / "wrong.yaml"
    overlay.write_text("benchmarks: {mmlu: {settings: {fewshot: {data: mmlu, split: def, count: 5}}}}\n")
    done = checkout.snakemake("-n", "--configfile", str(overlay), check=False)
    assert done.returncode != 0
    assert 'Did you mean "dev"?' in done.stdout
