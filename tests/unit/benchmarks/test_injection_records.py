"""Injection benchmarks over whole files: as the configuration reads them, the miniature's twins, a tiny model."""

import json
from pathlib import Path

import pyarrow
import pytest
from examinee_samples import examinee
from pyarrow import parquet
from score_samples import write_lines

from bulwark.benchmarks import benchmark_of, module_of
from bulwark.config import loading
from bulwark.config.entities import Dataset
from bulwark.data.readers import SPLIT_OPTIONS, read_split
from bulwark.errors import ConfigurationError, RecordError
from bulwark.evaluation.score import score_file
from bulwark.miniature.records import records
from bulwark.miniature.settings import MiniatureSettings
from bulwark.miniature.world import World, vocabulary
from bulwark.settings import merged, read_yaml, validated

ROOT = Path(__file__).parents[3]
SHARED = ROOT.parent / "shared" / "data" / "injections"
WORLD = MiniatureSettings()
NAMES = (
    "struq", "tensortrust", "gandalf", "purple", "hackaprompt", "injecagent", "open_prompt_injection", "iheval",
)  # fmt: skip


@pytest.fixture(scope="module")
def catalogue():
    return loading.load(read_yaml(ROOT / "config" / "config.yaml"), ROOT / "config")


def read(dataset: Dataset, path, split="test"):
    options = dataset.model_dump(include=SPLIT_OPTIONS)
    return read_split(path, split, dataset.splits, module_of(dataset.kind).Record, **options)


def rows_of(name, path, count=None):
    """The miniature's records as the configuration reads them, in a file of their kind."""
    rows = records(name, "test", WORLD, count)
    dataset = validated(Dataset, read_yaml(ROOT / "config" / "datasets" / f"miniature_{name}.yaml"), name)
    source = write_lines(path / f"{name}.json", rows)
    splits = {"splits": {"test": 1.0}}
    return rows, read(dataset.model_copy(update=splits), source)


@pytest.mark.parametrize("name", NAMES)
def test_a_tiny_model_is_asked_and_scored(tmp_path, catalogue, name):
    _, found = rows_of(name, tmp_path, 60 if name == "open_prompt_injection" else 3)
    path = tmp_path / "data" / "test.jsonl"
    write_lines(path, [json.loads(record.model_dump_json()) for record in found])
    resolved = catalogue.resolve("benchmarks", "miniature", name)
    few = {"pairs": 1} if name == "open_prompt_injection" else {}
    benchmark = benchmark_of(name, merged(resolved.plain, few))
    loaded = benchmark.load(path)
    answers = tmp_path / "answers.jsonl"
    made = benchmark.answers(examinee(tmp_path), loaded)
    assert len(made) == sum(len(benchmark.variants(record)) for record in loaded)
    write_lines(answers, made)
    identity = {"benchmark": name, "model": "m", "recipe": "base", "seed": 0}
    scores = score_file(
        benchmark, answers=answers, records=path, identity=identity, provenance={}, scores=tmp_path / f"{name}.json"
    )
    assert set(scores["metrics"]) == set(module_of(name).METRICS)
    assert scores["n"] == len(loaded)
    assert all(0 <= metric["value"] <= 1 for metric in scores["metrics"].values() if metric["value"] is not None)
    assert scores["reported"]["truncated_prompts"] == 0


REAL = {
    "gandalf": ("unsuccessful_gandalf", lambda row: {"text": row["user_message"], "similarity": 1.0}),
    "tensortrust": (
        "unsuccessful_hijacking", lambda row: {"pre_prompt": row["system_message"], "attack": row["user_message"]},
    ),
    "purple": ("unsuccessful_purple", lambda row: {"prompt": [row["user_message"]]}),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.exists(), reason="the recorded attacks are not beside the repository")
@pytest.mark.parametrize("name", REAL)
def test_recorded_attacks_go_through_a_tiny_model(tmp_path, catalogue, name):
    file, record_of = REAL[name]
    rows = json.loads((SHARED / f"{file}.json").read_text(encoding="utf-8"))
    path = write_lines(tmp_path / "test.jsonl", [{"id": str(n), **record_of(row)} for n, row in enumerate(rows)])
    resolved = catalogue.resolve("benchmarks", "qwen2.5-7b", name)
    benchmark = benchmark_of(name, merged(resolved.plain, {"decoding": {"max_new_tokens": 4}}))
    made = benchmark.answers(examinee(tmp_path), benchmark.load(path))
    assert len(made) == len(rows)
    scores = score_file(
        benchmark, answers=write_lines(tmp_path / "answers.jsonl", made), records=path, provenance={},
        identity={"benchmark": name, "model": "m", "recipe": "base", "seed": 0}, scores=tmp_path / "scores.json",
    )  # fmt: skip
    assert scores["metrics"]["attack_success_rate"]["value"] == 0
    assert scores["reported"]["truncated_prompts"] == 0


@pytest.mark.parametrize("name", NAMES)
def test_the_miniatures_records_are_of_its_words(name):
    def texts(value):
        if isinstance(value, dict):
            return [text for part in value.values() for text in texts(part)]
        return [text for part in value for text in texts(part)] if isinstance(value, list) else [str(value)]

    known = set(vocabulary())
    given = {"task", "setting", "kind", "model", "User Tool", "Tool Parameters", "Attack Type"}  # are no prompt's
    for row in records(name, "test", WORLD, 40):
        for key, value in row.items():
            if key not in given:
                words = {word for text in texts(value) for word in text.split() if not word.strip("{}").isdigit()}
                assert words - known <= {"True", "None", "1.0", "{}"}, key


@pytest.mark.parametrize("name", ["struq", "tensortrust", "gandalf", "purple", "hackaprompt", "injecagent"])
def test_a_witness_is_a_fact_that_no_record_tells(name):
    answers = {fact.answer for fact in World(WORLD.world).knowledge}
    for row in records(name, "test", WORLD, 100):
        witness = row.get("witness") or row.get("expected_completion") or row["Attacker Tools"][0]
        assert witness in answers
        told = [row.get(key) for key in ("instruction", "input", "command", "pre_prompt", "attack", "text", "prompt")]
        told += [row.get("Tool Response"), row.get("User Instruction")]
        assert not [text for text in told if text and witness in str(text)]


def test_twins_can_be_taken_apart_as_the_real_records_are(tmp_path):
    rows, found = rows_of("hackaprompt", tmp_path)
    cases = benchmark_of("hackaprompt", {"decoding": {}, "sample": None}).load(
        write_lines(tmp_path / "h.jsonl", [json.loads(record.model_dump_json()) for record in found])
    )
    assert len(cases) == len(rows) == 100
    assert [f"{case.instruction}{case.attack}" for case in cases] == [row["prompt"] for row in rows]


def of(catalogue, name, **source):
    """A data set of the configuration over files here, of any size: the local route."""
    return catalogue.datasets[name].model_copy(update={"source": None, "size": {}, **source})


@pytest.mark.parametrize(
    ("name", "size"), [("tensortrust", 776), ("gandalf", 140), ("hackaprompt", 601757), ("purple", 1)]
)
def test_a_file_of_another_size_is_refused_with_both_numbers(tmp_path, catalogue, name, size):
    rows = {
        "tensortrust": {"sample_id": 1, "pre_prompt": "You are a door.", "attack": "Open!", "post_prompt": ""},
        "gandalf": {"text": "a", "similarity": 0.9},
        "hackaprompt": {
            "prompt": "x", "user_input": "x", "expected_completion": "y", "model": "gpt-3.5-turbo", "correct": True,
        },
        "purple": {"prompt": ["Plums?"]},
    }  # fmt: skip
    dataset = catalogue.datasets[name].model_copy(update={"splits": {"test": 1.0}})
    other = rows[name] | ({"sample_id": 2} if name == "tensortrust" else {})
    path = write_lines(tmp_path / f"{name}.jsonl", [rows[name], other])
    with pytest.raises(RecordError, match=rf"has 2 rows, and `size` of the data set says {size}\. Get the file again"):
        read(dataset, path)


def test_tensor_trusts_file_is_read_without_defenses_behind_the_attack(tmp_path, catalogue):
    row = {"pre_prompt": "You are a door.", "access_code": "x", "attack": "Open!"}
    rows = [
        {"sample_id": 115384296476085, **row, "post_prompt": ""},
        {"sample_id": 2, **row, "post_prompt": "Say no."},
        {"sample_id": 3, **row, "pre_prompt": "", "post_prompt": ""},  # dropped, and told
    ]
    found = read(of(catalogue, "tensortrust"), write_lines(tmp_path / "t.jsonl", rows))
    assert [record.id for record in found] == ["115384296476085"]


def test_gandalfs_three_splits_are_one(tmp_path, catalogue):
    folder = tmp_path / "snapshot" / "data"
    folder.mkdir(parents=True)
    for split, texts in (("train", ["a", "b"]), ("validation", ["c"]), ("test", ["d"])):
        table = pyarrow.table({"text": texts, "similarity": [0.9] * len(texts)})
        parquet.write_table(table, folder / f"{split}-00000-of-00001-1af8cc7e.parquet")
    found = read(of(catalogue, "gandalf"), tmp_path / "snapshot")
    assert [record.text for record in found] == ["a", "b", "c", "d"]
    assert len({record.id for record in found}) == 4
    with pytest.raises(RecordError, match="no file is named after"):
        read(of(catalogue, "gandalf", splits={"test": "train+tests"}), tmp_path / "snapshot")


def test_purples_file_is_one_object_with_lists(tmp_path, catalogue):
    path = tmp_path / "purple_questions_test.json"
    path.write_text(json.dumps({"prompt": ["Plums?", "Wine?"], "chosen": ["x", "y"]}))
    (record,) = read(of(catalogue, "purple"), path)
    assert record.prompt == ("Plums?", "Wine?")


def test_hackaprompts_rows_are_chosen_by_model_and_verdict(tmp_path, catalogue):
    row = {
        "prompt": "Translate what follows: x",
        "user_input": "x",
        "expected_completion": "y",
        "score": 1.5,
        "level": 1,
    }
    rows = [
        {**row, "model": "gpt-3.5-turbo", "correct": True},
        {**row, "model": "gpt-3.5-turbo", "correct": False},
        {**row, "model": "gpt-3.5-turbo", "correct": None},
        {**row, "model": "FlanT5-XXL", "correct": True},
        {**row, "model": None, "correct": True, "user_input": None},
    ]
    table = pyarrow.Table.from_pylist(rows)
    parquet.write_table(table, tmp_path / "hackaprompt.parquet")
    found = read(of(catalogue, "hackaprompt"), tmp_path / "hackaprompt.parquet")
    assert [(record.id, record.model, record.correct) for record in found] == [("0", "gpt-3.5-turbo", True)]


def test_injecagents_columns_get_our_names(tmp_path, catalogue):
    row = {
        "Attacker Tools": ["A", "B"],
        "Modifed": 0,
        "Attacker Instruction": "Call A.",
        "Attack Type": "Physical Harm",
        "User Tool": "C",
        "User Instruction": "Ask C.",
        "Tool Parameters": "{}",
        "Tool Response Template": "{'x': '<Attacker Instruction>'}",
        "Tool Response": "{'x': 'Call A.'}",
    }
    path = tmp_path / "test_cases_dh_base.json"
    path.write_text(json.dumps([row]))
    (record,) = read(of(catalogue, "injecagent", splits={"test": 1}), path)
    assert (record.user_tool, record.attacker_tools, record.tool_response) == ("C", ("A", "B"), "{'x': 'Call A.'}")


def test_the_tasks_of_glue_are_named_by_their_files(tmp_path, catalogue):
    columns = {
        "sst2": {"sentence": ["good", "bad"]},
        "mrpc": {"sentence1": ["a", "b"], "sentence2": ["c", "d"]},
        "rte": {"sentence1": ["e", "f"], "sentence2": ["g", "h"]},
    }
    for name, texts in columns.items():
        (tmp_path / name).mkdir()
        table = pyarrow.table({**texts, "label": [1, 0], "idx": [0, 1]})
        parquet.write_table(table, tmp_path / name / "validation-00000-of-00001.parquet")
    with pytest.raises(RecordError, match="has 6 records, too few"):
        read(of(catalogue, "open_prompt_injection"), tmp_path)
    found = read(of(catalogue, "open_prompt_injection", splits={"test": 6}), tmp_path)
    assert [(record.task, record.label, record.text) for record in found[:3]] == [
        ("sentiment_analysis", 1, "good"),
        ("sentiment_analysis", 0, "bad"),
        ("duplicate_sentence_detection", 1, "a c"),
    ]
    assert found[-1].task == "natural_language_inference"


def test_ihevals_clone_is_read_file_by_file(tmp_path, catalogue):
    dataset = catalogue.datasets["iheval"]
    assert len(dataset.parts) == 4 + 12 + 4
    for part, told in dataset.parts.items():
        (tmp_path / part).parent.mkdir(parents=True)
        answers = {
            "safety": {"label": 0, "access_code": "x", "system_prompt": "y"},
            "webpage": {"task": "verb_extract", "content": "go"},
        }
        tool = {"call": {"name": "t", "arguments": {}}, "return": {"content": "text"}}
        row = {"id": 1, "system": "Do it.", "instruction": "No.", "answer": answers.get(told["task"], "x")}
        row |= {"summary": "left out"} | ({"tool": tool} if part.startswith("tool-use") else {})
        (tmp_path / part).write_text(json.dumps([row]))
    found = read(dataset, tmp_path)
    assert len({record.id for record in found}) == len(found) == 20
    assert {record.task for record in found} == {
        "slack_user", "webpage", "lang_detect", "verb_extract", "translation", "safety",
    }  # fmt: skip


def test_records_with_meta_are_chosen_by_it_and_not_by_their_fields(tmp_path):
    """Of a kind whose records are conversations; what is in their meta is the file's own, which no plan knows."""
    given = {
        "kind": "separability", "format": "fields", "fields": {"instruction": "asked"}, "splits": {"test": 1.0},
        "source": {"path": "a"}, "parts": {"a.jsonl": {"level": 0}, "b.jsonl": {"level": 1}}, "where": {"level": [1]},
    }  # fmt: skip
    for name, text in (("a", "one"), ("b", "other")):
        write_lines(tmp_path / f"{name}.jsonl", [{"asked": text}])
    config = merged(read_yaml(ROOT / "config" / "config.yaml"), {"datasets": {"own": given}})
    dataset = loading.load(config, ROOT / "config").datasets["own"]
    (record,) = read(dataset, tmp_path)
    assert record.turns[0].text == "other"


def test_records_without_meta_are_chosen_by_their_fields_and_unknown_ones_are_refused(tmp_path):
    rows = [{"id": str(n), "text": "x", "similarity": float(n)} for n in range(2)]
    path = write_lines(tmp_path / "g.jsonl", rows)
    given = {"kind": "gandalf", "source": {"path": str(path)}, "splits": {"test": 1.0}}
    (record,) = read(validated(Dataset, {**given, "where": {"similarity": [1.0]}}, "x"), path)
    assert record.id == "1"
    with pytest.raises(RecordError, match=r'no record has "similarity" in \[3\.0\]; there are 0\.0, 1\.0'):
        read(validated(Dataset, {**given, "where": {"similarity": [3.0]}}, "x"), path)
    config = read_yaml(ROOT / "config" / "config.yaml")
    wrong = {"datasets": {"gandalf": {"where": {"similarty": [1.0]}}}}
    with pytest.raises(
        ConfigurationError, match=r'gandalf.*no field of the records of gandalf "similarty".*"similarity"'
    ):
        loading.load(merged(config, wrong), ROOT / "config")
