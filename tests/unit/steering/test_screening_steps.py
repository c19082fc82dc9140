"""The steps delta_loss, gradient_probe and state_aware: what they refuse, what they ask for, and what fits together."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from screening_samples import COUNT, model_of, objective_of, policies, records_of, references_of, rows_in, screened

from bulwark import files
from bulwark.errors import BulwarkError, ConfigurationError, RecordError
from bulwark.jobs.job import Job
from bulwark.settings import validated
from bulwark.steering.dynamics.analyser import FILE, analyser_of
from bulwark.steering.screening.detections import refuse_missing
from bulwark.steering.vectors.fusion import FusedVectors
from bulwark.steps import delta_loss, gradient_probe, state_aware
from bulwark.training.finetuning import Course

TRAINING = {"epochs": 1.0, "batch_size": 4, "micro_batch_size": 2, "learning_rate": 1e-3}
BASE = {"data": "some", "training": TRAINING, "vectors": {"traits": ["x"], "layers": [1]}}


def settings_of(module, **changes):
    needed = {"projections": "some"} if module is state_aware else {}
    return validated(module.Settings, BASE | needed | changes, "here")


@pytest.mark.parametrize("module", [delta_loss, gradient_probe, state_aware])
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"training": TRAINING | {"packing": True}}, "packing must be false"),
        ({"training": TRAINING | {"loss_on": "all"}}, "must be response"),
        ({"vectors": {"traits": ["x"], "layers": [1, 2]}}, "judged at one layer"),
        ({"unknown": 1}, "unknown"),
        ({"training": TRAINING | {"lora": {"rank": 2, "dropout": 0.1}}}, "set training.lora.dropout to 0"),
        ({"training": TRAINING | {"optimizer": "schedulefree_adamw", "schedule": "constant"}}, "use adamw or sgd"),
    ],
)
def test_settings_that_do_not_let_rows_be_judged_are_refused(module, changes, reason):
    with pytest.raises(ConfigurationError, match=reason):
        settings_of(module, **changes)


@pytest.mark.parametrize(
    ("module", "changes", "reason"),
    [
        (delta_loss, {"mode": "inject", "granularity": "token"}, 'granularity must be "sample"'),
        (delta_loss, {"strategy": "min", "granularity": "token"}, 'granularity must be "sample"'),
        (delta_loss, {"intervention": {"site": "o_proj"}}, "site is o_proj"),
        (delta_loss, {"intervention": {"alpha": 0.0}}, "nothing is (ever )?flagged"),
        (gradient_probe, {"perturbation": {"alpha": 0.01}}, "either as relative or as alpha"),
        (gradient_probe, {"perturbation": {"relative": None}}, "either as relative or as alpha"),
        (
            gradient_probe,
            {"perturbation": {"derivative": "exact"}, "training": TRAINING | {"zero_stage": 3}},
            "needs whole weights",
        ),
    ],
)
def test_contradictions_are_refused(module, changes, reason):
    with pytest.raises(ConfigurationError, match=reason):
        settings_of(module, **changes)


def test_what_the_steps_ask_for():
    vector = {"vector_x": "vectors/{model}/{parent}/seed{seed}/x.safetensors"}
    data = {split: f"data/some/{split}.jsonl" for split in ("train", "validation")}
    assert settings_of(delta_loss).inputs() == data | vector
    assert settings_of(gradient_probe).inputs() == data | vector
    projections = {"projections": "projections/{model}/{parent}/seed{seed}/some.parquet"}
    assert settings_of(state_aware).inputs() == data | vector | projections


@pytest.fixture
def projections(tmp_path: Path) -> tuple[Path, Path, FusedVectors]:
    """A file as `project_dataset` writes it, the records it is of, and the vectors."""
    records = tmp_path / "train.jsonl"
    records.write_text("{}\n")
    vectors = FusedVectors({1: None}, {"files": {"x": "digest"}})
    path = tmp_path / "some.parquet"
    write(path, description_of(records, vectors))
    return path, records, vectors


def description_of(records: Path, vectors: FusedVectors) -> dict:
    made = {"vectors": settings_of(state_aware).vectors.model_dump(mode="json"), "mode": "response_mean"}
    return {"settings": made, "vectors": vectors.report, "records": files.digest(records)}


def write(path: Path, description: dict | None) -> None:
    import pyarrow
    from pyarrow import parquet

    metadata = {} if description is None else {"description": json.dumps(description)}
    parquet.write_table(pyarrow.table({"id": ["r0"]}).replace_schema_metadata(metadata), path)


@pytest.fixture
def begun(projections, tmp_path, monkeypatch):
    """`begun(settings)` makes the objective of the step state_aware with these projections, records and vectors."""
    path, records, vectors = projections

    def objective(settings, vectors=vectors, records_read=()):
        monkeypatch.setattr("bulwark.steering.steer.begin", lambda course, chosen: vectors)
        inputs = {"projections": str(path), "train": str(records)}
        job = Job("state_aware", {}, "", str(tmp_path / "checkpoint.json"), inputs, {"seed": 0}, "")
        course = Course(job, model_of(), list(records_read), [], 4, 4, 0, None, None, "vanilla")
        return state_aware.objective(course, settings)

    return objective


def test_projections_that_the_data_bring_are_refused(begun):
    """Nothing says which checkpoint and vectors they are of; a file of config/projections/ does."""
    [record, *_] = records_of()
    own = record.model_copy(update={"meta": record.meta | {"ref_projection": 0.5}})
    with pytest.raises(RecordError, match=r'"r0" has a column ref_projection.*Take the column out'):
        begun(settings_of(state_aware), records_read=[own])


def test_projections_of_the_same_data_and_vectors_are_taken(begun):
    assert begun(settings_of(state_aware)).policy.margin == 0


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"vectors": {"traits": ["x"], "layers": [2]}}, r"some.parquet: .* other vectors.layers \(\[1\]\) than"),
        ({"vectors": {"traits": ["y"], "layers": [1]}}, "other vectors.traits"),
        ({"vectors": {"traits": ["x"], "layers": [1], "fusion": "average"}}, "other vectors.fusion"),
        ({"training": TRAINING | {"max_tokens": 9}}, "other max_tokens"),
    ],
)
def test_projections_on_other_vectors_or_tokens_are_refused(changes, reason, begun):
    with pytest.raises(ConfigurationError, match=reason):
        begun(settings_of(state_aware, **changes))


def test_projections_made_otherwise_are_refused(projections, begun):
    path, records, vectors = projections
    settings, told = settings_of(state_aware), description_of(records, vectors)
    with pytest.raises(ConfigurationError, match="other vector_files"):
        begun(settings, FusedVectors({1: None}, {"files": {"x": "new"}}))
    records.write_text("{}\n{}\n")
    with pytest.raises(ConfigurationError, match="other records"):
        begun(settings)
    write(path, told | {"settings": told["settings"] | {"mode": "prompt_last"}})
    with pytest.raises(ConfigurationError, match=r"other mode \(prompt_last\)"):
        begun(settings)
    write(path, None)
    with pytest.raises(BulwarkError, match="does not say how it was made"):
        begun(settings)


def test_records_without_a_row_are_named():
    references = references_of()
    del references["r3"], references["r7"]
    with pytest.raises(RecordError, match=rf"2 of {COUNT} training records have no row in it \(r3, r7\)"):
        refuse_missing(references, records_of(), "some.parquet")
    refuse_missing(references_of(), records_of(), "some.parquet")


@pytest.mark.parametrize("name", ["mask", "inject", "probe", "state"])
def test_an_analysis_looks_on_without_changing_anything(name, tmp_path, monkeypatch):
    objective = objective_of(policies()[name], tmp_path / "analysed")
    monkeypatch.setattr("bulwark.steering.dynamics.analyser.begin", lambda course, settings: objective.vectors)
    settings = settings_of(delta_loss, analysis={"every": 2})
    analyser = analyser_of(objective.course, settings, objective.phase)
    looked_at = screened(None, tmp_path / "analysed", objective=objective, observers=[analyser], max_steps=4)
    alone = screened(policies()[name], tmp_path / "alone", max_steps=4)
    assert looked_at.report.loss == alone.report.loss
    assert rows_in(tmp_path / "analysed") == rows_in(tmp_path / "alone")
    assert (tmp_path / "analysed" / FILE).read_text()
    assert "detections" in objective.report()["steering"]
