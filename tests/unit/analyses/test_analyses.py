"""Analyses: what a training wrote down, as a scores file; and which recipes, tables and figures can have them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bulwark import analyses
from bulwark.analyses import steering
from bulwark.config import loading
from bulwark.errors import ConfigurationError, RecordError
from bulwark.models.manifests import write_manifest
from bulwark.reporting.tables import make_table
from bulwark.settings import read_yaml

CONFIG = Path(__file__).parents[3] / "config"
LAYER = 3
IDENTITY = {"benchmark": "steering_dynamics", "model": "miniature", "recipe": "steer", "seed": 0}
STUDY = {
    "models": ["miniature"],
    "recipes": ["base", "sft", "steer"],
    "seeds": [0, 1],
    "benchmarks": ["trait_evil"],
    "analyses": ["steering_dynamics"],
}
COLUMN = {"analysis": "steering_dynamics", "metric": "retention_parallel", "label": "‖g∥‖"}
TABLE = {"title": "t", "study": "s", "columns": [COLUMN], "rows": ["steer"]}


def rows_of(steps: int = 20) -> list[dict]:
    """Gradients whose part along v falls to a quarter and across it to a half; steered for the first half."""
    rows = []
    for step in range(0, steps, 2):
        late = step >= steps // 2
        values = {
            ("residual", "gradient_parallel"): 0.1 if late else 0.4,
            ("residual", "gradient_orthogonal"): 1.0 if late else 2.0,
            ("residual", "gradient_cosine"): -0.1 if late else -0.2,
            ("residual", "x"): 0.5 if late else -0.5,
            ("o_proj", "y"): -40.0 if late else 0.0,
            ("o_proj", "y_normalised"): None,
        }
        phase = "after" if late else "injection"
        rows += [
            {"step": step, "layer": LAYER, "module": module, "quantity": name, "value": value, "phase": phase}
            for (module, name), value in values.items()
        ]
        rows.append(rows[-1] | {"layer": 1, "module": "residual", "quantity": "gradient_parallel", "value": 99.0})
    place = {"step": 9, "layer": LAYER, "module": "o_proj", "phase": "injection"}
    return [*rows, place | {"quantity": "energy_parallel_early", "value": 0.0789}]


def checkpoint(folder: Path, rows: list[dict] | None, **told) -> Path:
    """A finished checkpoint whose step wrote these rows; none wrote any if they are None."""
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"weights")
    if rows is not None:
        (folder / "analysis.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        windows = {"early": [0, 10], "late": [10, 20]}
        told["analysis"] = {"file": "analysis.jsonl", "layer": LAYER, "windows": windows, "every": 2}
    manifest = folder / "checkpoint.json"
    write_manifest(manifest, {"kind": "steer", "provenance": {"git": "0"}, **told})
    return manifest


def analysed(folder: Path, manifest: Path, seed: int = 0) -> tuple[dict, Path]:
    scores = folder / "analyses" / "miniature" / "steer" / f"seed{seed}" / "steering_dynamics.json"
    told = analyses.analyse_file(
        checkpoint=manifest, module="steering", settings={}, identity={**IDENTITY, "seed": seed}, scores=scores
    )
    return told, scores


def values(told: dict) -> dict:
    return {name: metric["value"] for name, metric in told["metrics"].items()}


def test_table_8_from_the_rows(tmp_path):
    told, scores = analysed(tmp_path, checkpoint(tmp_path / "c", rows_of()))
    found = values(told)
    assert list(found) == list(steering.METRICS)
    assert found["retention_parallel"] == pytest.approx(0.25)
    assert found["retention_orthogonal"] == pytest.approx(0.5)
    assert found["retention_ratio"] == pytest.approx(0.5)
    assert (found["aligned_share_early"], found["aligned_share_late"]) == pytest.approx((0.2, 0.1))
    assert (found["x_injection"], found["x_after"]) == (-0.5, 0.5)
    assert found["energy_parallel_o_proj_early"] == 0.0789
    assert found["y_o_proj_late"] == -40
    assert told["metrics"]["retention_parallel"]["n"] == 10
    assert json.loads(scores.read_text()) == told
    assert scores.with_suffix(".records.jsonl").read_text().count("\n") == len(rows_of()) == told["n"]


def test_what_was_not_seen_is_null(tmp_path):
    rows = [row | {"phase": "plain"} for row in rows_of() if row["step"] < 10]
    found = values(analysed(tmp_path, checkpoint(tmp_path / "c", rows))[0])
    for name in ("retention_parallel", "retention_ratio", "aligned_share_late", "x_injection", "x_after"):
        assert found[name] is None
    assert found["energy_parallel_down_proj_early"] is None
    assert found["y_normalised_o_proj_late"] is None


def test_the_onset_is_found_in_every_steps_cosine_where_the_step_kept_them(tmp_path):
    series = [-0.5 + 0.45 * min(1, step / 20) + 0.001 * (-1) ** step for step in range(60)]
    told = {"gradient_layer": LAYER, "gradient_cosine": series}
    found, _ = analysed(tmp_path / "a", checkpoint(tmp_path / "a" / "c", rows_of(), steering=told))
    assert 20 <= values(found)["onset_step"] <= 25
    assert found["metrics"]["onset_step"]["n"] == 60
    assert found["reported"]["gradient_cosine"][0] == list(range(60))
    other = told | {"gradient_layer": 1}  # of another layer than the analysis'
    found, _ = analysed(tmp_path / "b", checkpoint(tmp_path / "b" / "c", rows_of(), steering=other))
    assert found["reported"]["gradient_cosine"][0] == list(range(0, 20, 2))


def test_a_step_that_wrote_nothing_is_refused(tmp_path):
    with pytest.raises(RecordError, match="wrote nothing to analyse"):
        analysed(tmp_path, checkpoint(tmp_path / "c", None))


def test_a_table_shows_an_analysis_without_a_better_direction(tmp_path):
    cells = []
    for seed in (0, 1):
        _, scores = analysed(tmp_path, checkpoint(tmp_path / f"c{seed}", rows_of()), seed)
        cells.append({**IDENTITY, "seed": seed, "scores": str(scores)})
    paths = [tmp_path / f"t.{ending}" for ending in ("csv", "md", "tex")]
    frame = make_table(TABLE, cells, None, *paths)
    assert frame["steering_dynamics.retention_parallel_percent.value"].tolist() == [pytest.approx(25)]
    assert "| ‖g∥‖ (%) |" in paths[1].read_text()


def load(**sections):
    whole = read_yaml(CONFIG / "config.yaml")
    steering = {"settings": {"analysis": {"every": 3}}}
    return loading.load(
        {
            "studies": {**whole["studies"], "s": STUDY | sections.pop("study", {})},
            "steps": {"steer": steering},
            **sections,
        },
        CONFIG,
    )


def test_only_recipes_whose_last_step_is_analysed_have_cells():
    found = load()
    assert found.analysis_cells("s") == [("miniature", "steer", seed, "steering_dynamics") for seed in (0, 1)]
    with pytest.raises(ConfigurationError, match='last step of "sft" leaves nothing behind'):
        found.analysis("miniature", "sft", "steering_dynamics", "somewhere")


@pytest.mark.parametrize(
    ("table", "study", "told"),
    [
        (TABLE | {"columns": [COLUMN | {"metric": "retention"}]}, {}, 'no metric of steering_dynamics "retention"'),
        (TABLE | {"columns": [COLUMN | {"analysis": "dynamics"}]}, {}, 'needs the benchmark "dynamics"'),
        (TABLE, {"analyses": []}, 'needs the analysis "steering_dynamics", which studies.s.analyses does not list'),
        (TABLE | {"rows": ["steer", "sft"]}, {}, 'last step of "sft" leaves nothing behind'),
        (TABLE, {"analyses": ["steering_dynamic"]}, 'no analysis "steering_dynamic"'),
    ],
)
def test_what_cannot_be_shown_is_an_error_before_any_job(table, study, told):
    with pytest.raises(ConfigurationError, match=told):
        load(tables={"t": table}, study={"tables": ["t"], **study})


def test_names_of_analyses_are_not_those_of_benchmarks():
    with pytest.raises(ConfigurationError, match='a benchmark is called "sep" as well'):
        load(analyses={"sep": {"module": "steering"}})
    with pytest.raises(ConfigurationError, match='no analysis module "steer"'):
        load(analyses={"other": {"module": "steer"}})


@pytest.mark.parametrize("step", ["sft_watched", "steer", "delta_loss"])
def test_adapters_have_no_updates_of_weights_to_look_at(step):
    lora = {"training": {"lora": {"rank": 2}}}
    changed = {step: {"models": {"miniature": {"settings": lora}}}}
    with pytest.raises(ConfigurationError, match=r"analysis\.weights looks at do not change"):
        loading.load({"studies": {}, "steps": changed}, CONFIG).step("miniature", step)


def test_plain_training_has_to_name_its_vectors():
    nameless = {"sft": {"settings": {"analysis": {"every": 10}}}}
    with pytest.raises(ConfigurationError, match=r"analysis\.vectors is missing"):
        loading.load({"studies": {}, "steps": nameless}, CONFIG).step("qwen3-8b", "sft")
