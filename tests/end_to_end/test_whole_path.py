"""The whole path at the miniature's smallest configuration: what it leaves behind, and what is done again when."""

import contextlib
import json

import pytest
import yaml

from tests.conftest import SMALLEST

pytestmark = pytest.mark.slow
REPORT = "results/reports/smallest"
RUN = ("--configfile", SMALLEST, "--", "all")


def read(checkout, path):
    return json.loads((checkout.folder / path).read_text(encoding="utf-8"))


@contextlib.contextmanager
def edited(path, old, new):
    """The file at `path` with `old` replaced, for a while."""
    before = path.read_text(encoding="utf-8")
    assert old in before
    path.write_text(before.replace(old, new, 1), encoding="utf-8")
    try:
        yield
    finally:
        path.write_text(before, encoding="utf-8")


@contextlib.contextmanager
def overlay(checkout, changes):
    path = checkout.folder / "changes.yaml"
    path.write_text(yaml.safe_dump({"name": "smallest", **changes}))
    try:
        yield ("--configfile", SMALLEST, "changes.yaml", "--", "all")
    finally:
        path.unlink()


def test_everything_that_was_asked_for_is_there(finished):
    for path in (
        "tables/aside_sep.csv",
        "tables/aside_sep.md",
        "tables/aside_sep.tex",
        "figures/aside_sep.pdf",
        "figures/aside_sep.png",
        "claims.md",
        "report.html",
        "results.csv",
        "results.parquet",
    ):
        assert (finished.folder / REPORT / path).stat().st_size > 0


def test_scores_have_the_agreed_shape(finished):
    scores = read(finished, "results/scores/miniature/aside/seed0/sep.json")
    assert {key: scores[key] for key in ("benchmark", "model", "recipe", "seed", "n")} == {
        "benchmark": "sep",
        "model": "miniature",
        "recipe": "aside",
        "seed": 0,
        "n": 24,
    }
    for metric in scores["metrics"].values():
        assert {"value", "stderr", "interval", "higher_is_better"} <= set(metric)
    provenance = scores["provenance"]
    assert provenance["settings"]["decoding"]["max_new_tokens"] == 16
    for key in ("checkpoint", "records", "prompt", "template", "seed"):
        assert key in provenance


def test_claims_have_the_agreed_shape(finished):
    (claim,) = read(finished, f"{REPORT}/claims.json")
    assert claim["id"] == "aside_separates"
    assert claim["verdict"] in ("reproduced", "not reproduced", "contradicted", "undecided")
    assert {"statement", "source", "effect", "interval", "n", "seeds", "p_value"} <= set(claim)


def test_a_checkpoint_tells_its_history(finished):
    manifest = read(finished, "results/checkpoints/miniature/aside/seed0/checkpoint.json")
    assert manifest["parent"]["path"].endswith("miniature/base/seed0/checkpoint.json")
    assert manifest["settings"]["alpha"] == pytest.approx(1.5707963)
    assert set(manifest["inputs"]) == {"train", "validation"}
    assert manifest["training"]["tokens"] > 0
    assert {"versions", "hardware", "git"} <= set(manifest["provenance"])
    assert any(file["name"] == "model.safetensors" for file in manifest["files"])
    assert not (finished.folder / "results/checkpoints/miniature/aside/seed0/training").exists()


def test_a_second_run_does_nothing(finished):
    assert finished.plan(*RUN) == {}


def test_a_comment_redoes_nothing(finished):
    for path in (
        "workflow/scripts/apply_step.py",
        "src/bulwark/steps/aside.py",
        "src/bulwark/benchmarks/sep.py",
        "src/bulwark/training/loop.py",
    ):
        with edited(finished.folder / path, "from ", "# A remark that changes nothing.\nfrom "):
            assert finished.plan(*RUN) == {}, path


def test_a_touched_or_checked_out_file_redoes_nothing(finished):
    for path in finished.folder.joinpath("src/bulwark").rglob("*.py"):
        path.touch()
    for path in finished.folder.joinpath("config").rglob("*.yaml"):
        path.touch()
    assert finished.plan(*RUN) == {}


def test_a_setting_of_one_step_redoes_its_descendants_only(finished):
    change = {"steps": {"aside": {"models": {"miniature": {"settings": {"training": {"learning_rate": 1.0e-4}}}}}}}
    with overlay(finished, change) as arguments:
        made = finished.planned_outputs(*arguments)
    touched = {
        path.split("/")[3]
        for path in made
        if path.startswith(("results/checkpoints", "results/answers", "results/scores"))
    }
    assert touched == {"aside"}
    assert sum(path.startswith("results/checkpoints/") for path in made) == 1


def test_the_code_of_one_step_redoes_its_descendants_only(finished):
    with edited(finished.folder / "src/bulwark/steps/aside.py", '"method": "aside"', '"method": "vanilla"'):
        plan = finished.plan(*RUN)
    assert plan["apply_step"] == 1
    assert plan["generate_answers"] == 2


def test_the_code_of_the_embedding_redoes_whatever_is_trained_with_it(finished):
    """Every model has a role embedding, whose code holds all methods: a change of one may change them all."""
    with edited(
        finished.folder / "src/bulwark/models/embeddings.py",
        'if direction == "right" else (-b, a)',
        'if direction == "left" else (-b, a)',
    ):
        made = finished.planned_outputs(*RUN)
    assert {path.split("/")[3] for path in made if path.startswith("results/checkpoints")} == {
        "base",
        "vanilla",
        "aside",
    }


def test_the_code_that_makes_prompts_redoes_the_answers_of_its_benchmark(finished):
    with edited(
        finished.folder / "src/bulwark/benchmarks/sep.py",
        "record.system_prompt_clean, record.prompt_instructed",
        "record.prompt_instructed, record.prompt_clean",
    ):
        plan = finished.plan(*RUN)
    assert plan["generate_answers"] == plan["score_answers"] == 3
    assert "apply_step" not in plan


def test_decoding_redoes_one_benchmark_only(finished):
    change = {"benchmarks": {"tasks": {"settings": {"decoding": {"max_new_tokens": 8}}}}}
    with overlay(finished, change) as arguments:
        plan = finished.plan(*arguments)
    assert plan["generate_answers"] == plan["score_answers"] == 3
    assert "apply_step" not in plan


def test_how_a_metric_is_computed_redoes_scores_only(finished):
    sep = finished.folder / "src/bulwark/benchmarks/sep.py"
    with edited(sep, "_as_it_looks(witness).strip() in _as_it_looks(response)", "witness in response"):
        plan = finished.plan(*RUN)
    assert plan["score_answers"] == 3
    assert "generate_answers" not in plan


def test_a_wider_table_needs_its_new_cells_only(finished):
    with overlay(
        finished, {"studies": {"aside": {"recipes": ["base", "vanilla", "aside", "vanilla+aside"]}}}
    ) as arguments:
        plan = finished.plan(*arguments)
    assert plan["apply_step"] == 1
    assert plan["generate_answers"] == 2


def test_the_readme_answers_from_python(finished):
    text = (finished.folder / "README.md").read_text(encoding="utf-8")
    snippet = text.split("```python\n", 1)[1].split("```", 1)[0]
    typed = "print(type(model.answer('name the first name .', 'anna has a ball .')).__name__)"
    done = finished.python("-c", f"{snippet}\n{typed}")
    assert done.stdout.strip().splitlines()[-1] == "str"


def test_the_command_line_answers_plans_and_tells(finished):
    asking = ("ask", "results/checkpoints/miniature/aside/seed0", "--instruction", "name the first name .")
    finished.bulwark(*asking, "--data", "anna has a ball .")
    refused = finished.bulwark("ask", "results/nowhere", "--instruction", "x", check=False)
    assert refused.returncode == 1
    assert "results/nowhere" in refused.stderr
    status = finished.bulwark("status", "--configfile", SMALLEST).stdout
    assert f"{REPORT}/tables/aside_sep.md" in status
    assert "ASIDE separates better than vanilla" in status
    planned = finished.bulwark("plan", "table_aside_sep").stdout
    assert "by stage" in planned
    assert "steps" in planned
