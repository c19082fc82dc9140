"""The detectors benchmark: which way is suspicious, what counts, and the numbers per level."""

from __future__ import annotations

import json

import pyarrow
import pytest
import torch
from examinee_samples import examinee, tiny_aside
from pyarrow import parquet
from score_samples import write_lines

from bulwark import files
from bulwark.benchmarks import detectors
from bulwark.data.records import Conversation, Turn
from bulwark.errors import ConfigurationError, RecordError
from bulwark.evaluation.score import score_file
from bulwark.settings import validated
from bulwark.steering.vectors import storage

VECTORS = {"traits": ["rude"], "layers": [1]}


def settings(**changes):
    return validated(detectors.Settings, {"vectors": VECTORS, "scoring": {"resamples": 50}, **changes}, "test")


def benchmark(**changes):
    return detectors.Benchmark(settings(**changes))


def row(level, n_resp=4, **scores):
    known = {name: scores.get(name) for name in detectors.SIGNS}
    return {**known, "level": str(level), "trait": scores.get("trait", "rude"), "n_resp": n_resp, "depth": 0.75}


def rows() -> list[dict]:
    """Δ tells both levels from normal rows, with one exception; D2 only level 2; the state does not say anything."""
    normal = [row(0, delta_mean=1.0 + n, D2=float(n), p_cur=0.0) for n in range(10)]
    mild = [row(1, delta_mean=-1.0 - n, D2=float(n), p_cur=0.0) for n in range(10)]
    strong = [row(2, delta_mean=-5.0 - n, D2=20.0 + n, p_cur=0.0) for n in range(10)]
    strong[0]["delta_mean"] = 1.5
    return normal + mild + strong


def values(found: dict) -> dict:
    return {name: metric["value"] for name, metric in found.items()}


def test_low_differences_and_high_curvatures_are_suspicious():
    found = benchmark().aggregate(rows())
    told = values(found)
    assert told["auroc_delta_mean"] == pytest.approx((19 * 10 + 9) / 200)
    assert told["auroc_D2"] == pytest.approx(0.75)
    assert told["auroc_p_cur"] == 0.5
    assert told["tpr_at_1_fpr_delta_mean"] == pytest.approx(19 / 20)
    low, high = found["auroc_delta_mean"]["interval"]
    assert low < told["auroc_delta_mean"] <= high
    assert found["auroc_delta_mean"]["stderr"] > 0
    assert found["auroc_delta_mean"]["n"] == 30
    assert list(found) == list(detectors.METRICS)


def test_a_detector_that_was_left_out_is_null():
    found = benchmark().aggregate(rows())
    assert found["auroc_dp"] == {"value": None, "stderr": None, "interval": None, "n": 0, "higher_is_better": True}


def test_each_level_stands_against_all_normal_rows():
    told = benchmark().breakdowns(rows())
    assert set(told) == {"level", "trait"}
    assert {level: values(found)["auroc_D2"] for level, found in told["level"].items()} == {"1": 0.5, "2": 1.0}
    assert told["level"]["1"]["auroc_D2"]["n"] == 20
    assert told["trait"] == {}


def test_traits_are_told_apart():
    other = [{**one, "trait": "boastful", "D2": -one["D2"]} for one in rows()]
    told = benchmark().breakdowns(rows() + other)["trait"]
    assert {trait: values(found)["auroc_D2"] for trait, found in told.items()} == {"boastful": 0.25, "rude": 0.75}


def test_rows_without_anything_supervised_do_not_count():
    cut = [row(2, n_resp=0, delta_mean=0.0, D2=0.0), row(0, delta_mean=None, D2=1.0)]
    found = benchmark().aggregate(rows() + cut)
    assert found["auroc_delta_mean"]["n"] == 30
    assert found["auroc_D2"]["n"] == 31
    told = benchmark().reported(rows() + cut)
    assert told["rows_without_supervised_token"] == 1
    assert told["rows_undefined"]["delta_mean"] == 1
    assert told["rows_by_level"] == {"0": 11, "1": 10, "2": 11}


def test_a_value_at_its_threshold_is_safe():
    at = [row(0, delta_mean=0.0, delta_min=-1.0, probe_cos=0.12, probe_proj=1.0, dp=0.0)]
    over = [row(1, delta_mean=-1e-9, delta_min=1.0, probe_cos=0.13, probe_proj=1e-7, dp=1e-9)]
    told = benchmark().reported(at + over)["flagged"]
    assert told["delta_mean"] == {"true_positive_rate": 1.0, "false_positive_rate": 0.0, "rows": 2}
    assert told["delta_min"] == {"true_positive_rate": 0.0, "false_positive_rate": 1.0, "rows": 2}
    assert told["probe"] == told["dp"] == {"true_positive_rate": 1.0, "false_positive_rate": 0.0, "rows": 2}
    none = benchmark().reported([row(0, D2=1.0)])["flagged"]
    assert none["dp"] == {"true_positive_rate": None, "false_positive_rate": None, "rows": 0}


def test_curves_correlations_and_costs():
    told = benchmark().reported(rows())
    assert told["roc"]["delta_mean"][0] == [0, 0]
    assert told["roc"]["delta_mean"][-1] == [1, 1]
    assert [0.0, 1.0] in told["roc_by_level"]["2"]["D2"]
    assert set(told["roc_by_level"]) == {"1", "2"}
    assert "dp" not in told["roc"]
    assert told["correlation"]["D2"]["D2"] == pytest.approx(1)
    assert told["correlation"]["delta_mean"]["D2"] == told["correlation"]["D2"]["delta_mean"] > 0
    assert told["correlation"]["p_cur"]["D2"] is None
    costs = told["cost_forward_units"]
    assert (costs["p_cur"], costs["delta_mean"], costs["probe_cos"], costs["dp_prompt"]) == (0.75, 1.25, 1.75, 0.75)


def test_other_names_for_normal():
    chosen = benchmark(scoring={"normal": ["clean"], "resamples": 50})
    told = chosen.breakdowns([{**one, "level": {"0": "clean"}.get(one["level"], "bad")} for one in rows()])
    assert list(told["level"]) == ["bad"]


def test_what_it_asks_for():
    assert settings(projections="persona_evil", of="sft").inputs() == {
        "vector_rude": "vectors/{model}/sft/seed{seed}/rude.safetensors",
        "projections": "projections/{model}/sft/seed{seed}/persona_evil.parquet",
    }
    assert list(settings().inputs()) == ["vector_rude"]
    with pytest.raises(ConfigurationError, match="one layer"):
        settings(vectors={"traits": ["rude"], "layers": [1, 2]})


def test_rows_need_a_level(tmp_path):
    turns = [{"role": "instruction", "text": "a"}, {"role": "response", "text": "b"}]
    path = write_lines(tmp_path / "rows.jsonl", [{"id": "1", "turns": turns, "meta": {"trait": "rude"}}])
    with pytest.raises(RecordError, match='"1" has no level'):
        benchmark().load(path)


@pytest.fixture
def conversations() -> list[Conversation]:
    texts = ["The committee met.", "Nobody objected to the vote after a long debate.", "Write a plan."]
    return [
        Conversation(
            id=f"r{n}",
            turns=(Turn(role="instruction", text=f"Name {n}."), Turn(role="response", text=text)),
            meta={"level": min(n, 2), "trait": "rude"},
        )
        for n, text in enumerate(texts)
    ]


def projected(folder, conversations, chosen, files, **changes):
    """A file of projections as `project_dataset` leaves it."""
    made = {
        "vectors": chosen.settings.vectors.model_dump(mode="json"),
        "mode": "response_mean",
        "max_tokens": None,
        **changes,
    }
    rows = [{"id": c.id, "ref_projection": 0.5, "prompt_projection": 0.25, "excluded": None} for c in conversations]
    told = {"settings": made | changes, "vectors": {"files": files}, "records": "digest"}
    table = pyarrow.Table.from_pylist(rows).replace_schema_metadata({"description": json.dumps(told)})
    parquet.write_table(table, folder / "p.parquet")
    return folder / "p.parquet"


def test_every_row_is_scored_on_a_model(tmp_path, conversations):
    path = tmp_path / "rude.safetensors"
    torch.manual_seed(3)
    storage.write(path, torch.randn(3, 32), {"trait": "rude"})
    chosen = benchmark(projections="p")
    references = projected(tmp_path, conversations, chosen, {"rude": files.digest(path)})
    subject = examinee(tmp_path, tiny_aside(), inputs={"vector_rude": path, "projections": references})
    answers = chosen.answers(subject, conversations)
    assert [(a["id"], a["variant"], a["truncated"]) for a in answers] == [(f"r{n}", "answer", False) for n in range(3)]
    told = [chosen.score(c, {"answer": a["response"]}) for c, a in zip(conversations, answers, strict=True)]
    for one, answer in zip(told, answers, strict=True):
        assert all(isinstance(one[name], float) for name in detectors.SIGNS)
        assert one["delta_mean"] == pytest.approx(one["loss_inj"] - one["loss_nat"], abs=1e-5)
        assert one["dp"] == pytest.approx(one["p_cur"] - 0.5)
        assert one["dp_prompt"] == pytest.approx(one["p_cur"] - 0.25)
        assert one["depth"] == 0.5
        assert answer["tokens"] == one["n_resp"] > 0
    assert [one["level"] for one in told] == ["0", "1", "2"]
    assert "id" not in told[0]
    identity = {"benchmark": "detectors", "model": "tiny", "recipe": "base", "seed": 0}
    records = write_lines(tmp_path / "rows.jsonl", [c.model_dump(mode="json") for c in conversations])
    scored = score_file(
        chosen, answers=write_lines(tmp_path / "a.jsonl", answers), records=records,
        identity=identity, provenance={}, scores=tmp_path / "s.json",
    )  # fmt: skip
    assert scored["n"] == 3
    assert len(json.loads((tmp_path / "s.json").read_text())["reported"]["roc"]) == len(detectors.SIGNS)


def test_projections_must_fit(tmp_path, conversations):
    path = tmp_path / "rude.safetensors"
    storage.write(path, torch.ones(3, 32), {"trait": "rude"})
    chosen, vector_files = benchmark(projections="p"), {"rude": files.digest(path)}
    inputs = {"vector_rude": path, "projections": tmp_path / "p.parquet"}
    subject = examinee(tmp_path, tiny_aside(), inputs=inputs)
    projected(tmp_path, conversations[:1], chosen, vector_files)
    with pytest.raises(RecordError, match='2 rows have no projection, "r1"'):
        chosen.answers(subject, conversations)
    projected(tmp_path, conversations, benchmark(vectors={"traits": ["rude"], "layers": [2]}), vector_files)
    with pytest.raises(ConfigurationError, match=r"other vectors\.layers .*config/projections/p\.yaml"):
        chosen.answers(subject, conversations)
    projected(tmp_path, conversations, chosen, {"rude": "another"})
    with pytest.raises(ConfigurationError, match="other vector_files"):
        chosen.answers(subject, conversations)
    projected(tmp_path, conversations, chosen, vector_files, mode="prompt_last")
    with pytest.raises(ConfigurationError, match="other mode"):
        chosen.answers(subject, conversations)
