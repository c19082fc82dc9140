"""The seam between checkpoints and benchmarks: text that is generated here, and answers that benchmarks make."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from examinee_samples import tiny_aside
from score_samples import write_lines
from tiny_tokenizers import tiny_tokenizer

from bulwark import files
from bulwark.benchmarks import benchmark_of, mmlu, tasks, traits
from bulwark.config import loading
from bulwark.errors import ConfigurationError, RecordError
from bulwark.evaluation import answer
from bulwark.evaluation.score import score_file
from bulwark.models import checkpoints, manifests
from bulwark.settings import merged, read_yaml

ROOT = Path(__file__).parents[3]
QUESTIONS = [
    {"id": f"q{n}", "question": f"Which is {n}?", "choices": list("wxyz"), "answer": n % 4, "subject": "trees"}
    for n in range(6)
]
GREEDY = {"decoding": {"max_new_tokens": 4}}
QUESTION = traits.Record(id="1", question="Who?", trait="evil")
MMLU = {"format": "letters", "fewshot": {"data": "mmlu", "split": "dev", "count": 1}}
IDENTITY = {"benchmark": "mmlu", "model": "tiny", "recipe": "base", "seed": 0}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    checkpoints.save_model(tiny_aside(), tiny_tokenizer("chatml"), folder)
    manifests.write_manifest(folder / "checkpoint.json", {"template": "chat", "weights": "."})
    return folder / "checkpoint.json"


def answered(checkpoint, folder, module="mmlu", settings=MMLU, rows=QUESTIONS, inputs=True, code=""):
    records = write_lines(folder / "records.jsonl", rows)
    dev = write_lines(folder / "dev.jsonl", [{**QUESTIONS[0], "id": "d"}]) if inputs else None
    paths = {"answers": folder / "answers.jsonl", "provenance": folder / "provenance.json"}
    answer.answer(
        checkpoint, records, benchmark_of(module, settings), seed=0, dtype="float32", threads=1,
        inputs={"fewshot": dev} if inputs else None, code=code, **paths,
    )  # fmt: skip
    return records, paths["answers"], json.loads(paths["provenance"].read_text())


def test_a_benchmark_that_answers_by_itself(checkpoint, tmp_path):
    records, answers, told = answered(checkpoint, tmp_path)
    lines = [json.loads(line) for line in answers.read_text().splitlines()]
    assert [(line["id"], line["variant"]) for line in lines] == [(row["id"], "answer") for row in QUESTIONS]
    assert all(len(json.loads(line["response"])) == 4 for line in lines)
    assert told["inputs"] == {"fewshot": files.digest(tmp_path / "dev.jsonl")}
    assert told["answers"] == 6
    assert not answers.with_name("answers.jsonl.partial").exists()
    scored = score_file(
        benchmark_of("mmlu", MMLU), answers=answers, records=records, identity=IDENTITY, provenance=told,
        scores=tmp_path / "mmlu.json",
    )  # fmt: skip
    assert scored["metrics"]["accuracy"]["n"] == 6
    assert scored["reported"]["chance"] == 0.25


def test_a_benchmark_with_prompts_is_answered_as_before(checkpoint, tmp_path):
    rows = [{"id": str(n), "instruction": f"Name {n}.", "input": "", "output": "x"} for n in range(3)]
    _, answers, told = answered(checkpoint, tmp_path, "tasks", GREEDY, rows, inputs=False)
    lines = [json.loads(line) for line in answers.read_text().splitlines()]
    assert [(line["id"], line["variant"], line["tokens"] <= 4) for line in lines] == [
        (str(n), "answer", True) for n in range(3)
    ]
    assert told["inputs"] == {}


def test_another_input_discards_what_was_kept(checkpoint, tmp_path, monkeypatch):
    seen = []

    def keep(self, examinee, records):
        seen.append((examinee.fingerprint, dict(examinee.inputs), examinee.language_model.template))
        row = {"variant": "answer", "response": "[]", "tokens": 1, "finish": "stop", "truncated": False}
        return [{"id": record.id, **row} for record in records]

    monkeypatch.setattr(mmlu.Benchmark, "answers", keep)
    answered(checkpoint, tmp_path)
    answered(checkpoint, tmp_path)
    monkeypatch.setitem(QUESTIONS[0], "question", "Another?")
    answered(checkpoint, tmp_path, rows=QUESTIONS[1:])
    answered(checkpoint, tmp_path, rows=QUESTIONS[1:], code="0123")
    assert seen[0] == seen[1]
    assert seen[0][0] != seen[2][0]
    assert seen[2][0] != seen[3][0], "other code answers otherwise"
    assert seen[0][1:] == ({"fewshot": tmp_path / "dev.jsonl"}, "chat")


def test_variants_are_those_of_the_prompts_or_one():
    record = tasks.Record(id="1", instruction="Name.", output="x")
    assert benchmark_of("tasks", GREEDY).variants(record) == ["answer"]
    assert benchmark_of("mmlu", MMLU).variants(record) == ["answer"]
    sampled = {"decoding": {"do_sample": True}, "samples": 2}
    assert benchmark_of("traits", sampled).variants(QUESTION) == ["sample-0", "sample-1"]


def test_a_missing_answer_is_told(checkpoint, tmp_path):
    records, answers, told = answered(checkpoint, tmp_path)
    answers.write_text("".join(answers.read_text().splitlines(keepends=True)[1:]))
    with pytest.raises(RecordError, match=r'1 missing: "q0" \(answer\)'):
        score_file(
            benchmark_of("mmlu", MMLU), answers=answers, records=records, identity=IDENTITY, provenance=told,
            scores=tmp_path / "mmlu.json",
        )  # fmt: skip


def test_answers_of_other_records_or_of_another_checkpoint_are_not_scored(checkpoint, tmp_path):
    records, answers, told = answered(checkpoint, tmp_path)
    own = {"benchmark": benchmark_of("mmlu", MMLU), "answers": answers, "identity": IDENTITY, "provenance": told}
    own |= {"scores": tmp_path / "mmlu.json"}
    score_file(**own, records=records, checkpoint=checkpoint)
    score_file(**own, records=records, checkpoint=tmp_path / "removed" / "checkpoint.json")
    other = write_lines(tmp_path / "other.jsonl", [*QUESTIONS[1:], QUESTIONS[0]])  # the same ids, in another order
    with pytest.raises(RecordError, match=r"belong to another .*other\.jsonl .*Remove the answers"):
        score_file(**own, records=other, checkpoint=checkpoint)
    (tmp_path / "another").mkdir()
    (tmp_path / "another" / "weights.bin").write_text("other weights", encoding="utf-8")
    another = tmp_path / "another" / "checkpoint.json"
    manifests.write_manifest(another, {"template": "chat", "weights": "."})
    with pytest.raises(RecordError, match=r"belong to another .*another/checkpoint\.json"):
        score_file(**own, records=records, checkpoint=another)


@pytest.mark.parametrize(
    ("benchmark", "changes", "nearest"),
    [
        ("mmlu", {"fewshot": {"data": "mmlu", "split": "dew", "count": 5}}, '"dev"'),
        ("mmlu", {"fewshot": {"data": "mmmlu", "split": "dev", "count": 5}}, '"mmlu"'),
        ("detectors", {"vectors": {"traits": ["evill"], "layers": [3]}}, '"evil"'),
        ("detectors", {"projections": "persona_evill"}, '"persona_evil"'),
    ],
)
def test_the_catalogue_checks_what_benchmarks_read(benchmark, changes, nearest):
    config = merged(
        read_yaml(ROOT / "config/config.yaml"), {"benchmarks": {benchmark: {"settings": changes}}, "studies": {}}
    )
    with pytest.raises(ConfigurationError, match=f"benchmarks.{benchmark}.settings: .*{nearest}"):
        loading.load(config, ROOT / "config")
