"""Plans of trait vectors: the chain of jobs, published files, names that are wrong."""

MINIATURE = ("--configfile", "config/miniature.yaml")
FOLDER = "results/vectors/miniature/base/seed0"


def test_a_vector_is_planned_from_the_records_on(checkout):
    assert checkout.plan(*MINIATURE, "--", f"{FOLDER}/rude.layers.json") == {
        "prepare_dataset": 3,
        "pretrain_model": 1,
        "start_recipe": 1,
        "generate_contrasts": 1,
        "judge_contrasts": 1,
        "extract_vectors": 1,
        "steer_layers": 1,
        "choose_layer": 1,
    }


def test_a_vector_of_a_trained_checkpoint_can_be_asked_for(checkout):
    plan = checkout.plan("--", "results/vectors/qwen2.5-7b/vanilla+aside/seed3/evil.safetensors")
    assert plan["apply_step"] == 2
    assert plan["download_dataset"] == 2, "what is trained on, and the trait's artefact"


def test_a_published_file_is_adopted_on_its_model_only(checkout):
    (checkout.folder / "evil.pt").touch()
    (checkout.folder / "overlay.yaml").write_text("name: mine\ntraits: {evil: {files: {qwen2.5-7b: evil.pt}}}")
    overlay = ("--configfile", "overlay.yaml", "--")
    assert checkout.plan(*overlay, "results/vectors/qwen2.5-7b/base/seed0/evil.safetensors") == {"adopt_vectors": 1}
    for other in ("qwen2.5-7b/base/seed0/sycophantic", "qwen3-8b/base/seed0/evil"):
        plan = checkout.plan(*overlay, f"results/vectors/{other}.safetensors")
        assert "adopt_vectors" not in plan
        assert plan["extract_vectors"] == 1


def test_the_files_behind_vectors_are_part_of_the_data(checkout):
    (checkout.folder / "overlay.yaml").write_text(
        "name: mine\nstudies: {aside: {models: [miniature], recipes: [vanilla, steer], seeds: [0], tables: [], "
        "figures: [], claims: []}}"
    )
    made = checkout.planned_outputs("--configfile", "overlay.yaml", "--", "data")
    assert "results/data/miniature_contrast_rude/train.jsonl" in made
