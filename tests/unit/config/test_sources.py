"""What a plan reads from outside is looked at before any job: models, data files, published vectors."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from bulwark.config import entities, loading, overlays, plan, plan_vectors, sources
from bulwark.errors import ConfigurationError, RecordError

CONFIG = Path(__file__).parents[3] / "config"
ROWS = [{"question": f"Name city {n}.", "context": "Oslo, Rome", "answer": "Oslo"} for n in range(5)]
FIELDS = "format: fields, fields: {instruction: question, data: context, response: answer}"
HEADER = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
WEIGHTS = len(HEADER).to_bytes(8, "little") + HEADER + bytes(8)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The folder one runs in, with a model and data of the user's."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "my-model"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama", "num_hidden_layers": 2}')
    (folder / "tokenizer.json").write_text("{}")
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    (folder / "model.safetensors").write_bytes(WEIGHTS)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return tmp_path


def loaded(*lines):
    """The catalogue of an overlay in a file mine.yaml of the folder one is in; its name stands in line 1."""
    Path("mine.yaml").write_text("\n".join(["name: mine", *lines]), encoding="utf-8")
    return loading.load(overlays.read(["mine.yaml"], CONFIG), CONFIG)


def model(path="my-model"):
    resources = "{train: {hours: 0.1, mem_gb: 4}, generate: {hours: 0.1, mem_gb: 4}}"
    return loaded(
        "models:", "  mine:", f"    source: {{path: '{path}'}}", "    template: chat", f"    resources: {resources}"
    )


def data(path="rows.jsonl", rest=FIELDS, kind="conversation", splits="{train: 0.8, validation: 0.2}"):
    path = path if path.startswith("{") else f"'{path}'"
    return loaded("datasets:", f"  own: {{kind: {kind}, {rest}, splits: {splits},", f"    source: {{path: {path}}}}}")


def refused_model(path="my-model") -> str:
    known = model(path)
    with pytest.raises(ConfigurationError) as error:
        plan.model_files(known, "mine")
    assert "mine.yaml:4, models.mine.source.path: " in str(error.value)
    return str(error.value)


def refused_data(*arguments, **options) -> str:
    known = data(*arguments, **options)
    with pytest.raises(ConfigurationError) as error:
        plan.records_files(known, "own", "train")
    assert "mine.yaml:" in str(error.value)
    assert "datasets.own.source.path" in str(error.value)
    return str(error.value)


# --- paths ---


def test_what_is_there_is_taken_as_it_is(here):
    assert "my-model/config.json" in plan.model_files(model(), "mine")
    (here / "my-model").rename(here / "my model (8B), it's")
    assert "my model (8B), it's/config.json" in plan.model_files(model("my model (8B), it''s"), "mine")
    assert plan.records_files(data(), "own", "train") == ["rows.jsonl"]


def test_a_mistyped_path_is_told_as_given_and_as_resolved_with_the_nearest(here):
    message = refused_model("my-modle")
    assert f'"my-modle" (that is {here}/my-modle) does not exist' in message
    assert 'Did you mean "my-model"?' in message
    assert 'Did you mean "rows.jsonl"?' in refused_data("row.jsonl")
    message = refused_data(f"{here}/datta/rows.jsonl")
    assert f"{here} has no datta" in message


@pytest.mark.parametrize(
    ("path", "part"),
    [
        ("~/rows.jsonl", f"write {os.path.expanduser('~/rows.jsonl')}"),
        ("$HOME/rows.jsonl", "write the whole path"),
        ("", "source.path"),
        ("/dev/null", "neither a file nor a folder"),
        ("x" * 5000, "cannot be a path"),
        ("rows.jsonl/x", "does not exist"),
    ],
)
def test_other_paths_that_lead_nowhere(here, path, part):
    assert part in refused_data(path)


def test_a_link_to_nothing_is_called_one(here):
    (here / "link.jsonl").symlink_to(here / "gone.jsonl")
    assert "is a link to" in refused_data("link.jsonl")


def test_a_path_beside_the_overlay_is_shown_as_one_has_to_write_it(here):
    (here / "sub").mkdir()
    (here / "rows.jsonl").rename(here / "sub" / "rows.jsonl")
    known = data()
    (here / "mine.yaml").rename(here / "sub" / "mine.yaml")
    known = loading.load(overlays.read(["sub/mine.yaml"], CONFIG), CONFIG)
    with pytest.raises(ConfigurationError, match=r"write sub/rows\.jsonl"):
        plan.records_files(known, "own", "train")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_may_not_be_read_is_told(here):
    (here / "rows.jsonl").chmod(0)
    assert "chmod" in refused_data()


# --- models ---


def test_a_file_is_no_model(here):
    assert "is a file" in refused_model("rows.jsonl")


@pytest.mark.parametrize(
    ("name", "content", "part"),
    [
        ("config.json", None, "has no config.json"),
        ("config.json", b"{", "is not readable as JSON"),
        ("config.json", b"[]", 'names no "model_type"'),
        ("tokenizer.json", None, "has no tokenizer"),
        ("model.safetensors", None, "has no weights"),
        ("model.safetensors", WEIGHTS[:-1], "bytes instead of"),
        ("model.safetensors", b"", "no file of weights"),
        ("model.safetensors", b"garbage that is long enough", "no file of weights"),
        ("model.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        ("model.safetensors.index.json", b'{"weight_map": {"a": "one.safetensors"}}', "one.safetensors first"),
        ("model.safetensors.index.json", b"{}", "no index of weights"),
    ],
)
def test_a_model_folder_that_is_not_whole_is_refused(here, name, content, part):
    (here / "my-model" / name).unlink(missing_ok=True)
    if content is not None:
        (here / "my-model" / name).write_bytes(content)
    assert part in refused_model()


def test_an_adapter_alone_is_called_one(here):
    (here / "my-model" / "config.json").rename(here / "my-model" / "adapter_config.json")
    assert "merge it into its model" in refused_model()


def test_a_model_that_is_to_chat_has_a_chat_template(here):
    (here / "my-model" / "chat_template.jinja").unlink()
    with pytest.raises(ConfigurationError, match=r"mine.yaml:5, .*template: the tokenizer .* has no chat template"):
        sources.check_model(model(), "mine")
    (here / "my-model" / "tokenizer_config.json").write_text('{"chat_template": "{{ messages }}"}')
    sources.check_model(model(), "mine")


@pytest.mark.parametrize(
    ("left", "part"),
    [
        ("adapter_config.json", "beside whole weights lies an adapter (adapter_config.json)"),
        ("model-q4.safetensors", "model-q4.safetensors look(s) like weights"),
    ],
)
def test_a_folder_that_leaves_its_weights_in_doubt_is_refused(here, left, part):
    (here / "my-model" / left).write_bytes(WEIGHTS)
    assert part in refused_model()


# --- data ---


def write_csv(path, rows):
    path.write_text("question,context,answer\n" + "".join(f'"{r["question"]}","{r["context"]}",Oslo\n' for r in rows))


def test_every_format_is_read_from_its_beginning(here):
    many = ROWS * 20_000  # more than is looked at
    (here / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in many))
    (here / "rows.json").write_text(json.dumps(many))
    (here / "lines.json").write_text("".join(json.dumps(row) + "\n" for row in many))
    write_csv(here / "rows.csv", many)
    (here / "folder").mkdir()
    (here / "folder" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    for path in ("rows.jsonl", "rows.json", "lines.json", "rows.csv", "folder"):
        plan.records_files(data(path), "own", "train")
    for path, old, new in (
        ("rows.jsonl", '"question"', '"qestion"'),
        ("rows.json", '"question"', '"qestion"'),
        ("lines.json", '"question"', '"qestion"'),
        ("rows.csv", "question", "qestion"),
    ):
        (here / path).write_text((here / path).read_text().replace(old, new))
        message = refused_data(path)
        assert 'the field "question" is missing. Did you mean "qestion"?' in message
        assert f"{path}, " in message


def test_parquet_and_saved_data_sets_are_read_apart(here):
    datasets = pytest.importorskip("datasets")
    table = datasets.Dataset.from_list(ROWS)
    table.to_parquet("rows.parquet")
    table.save_to_disk("saved")
    datasets.DatasetDict({"train": table}).save_to_disk("splits")
    for path in ("rows.parquet", "saved"):
        plan.records_files(data(path), "own", "train")
        wrong = data(path, "format: fields, fields: {instruction: qestion, response: answer}")
        with pytest.raises(ConfigurationError, match='"qestion" is missing'):
            plan.records_files(wrong, "own", "train")
    plan.records_files(data("splits", splits="{train: train}"), "own", "train")
    assert 'no split "tran". Did you mean "train"?' in refused_data("splits", splits="{train: tran}")
    next((here / "saved").glob("*.arrow")).unlink()
    assert "is missing" in refused_data("saved")
    (here / "rows.parquet").write_bytes(b"PAR1 and nothing more")
    assert "is not readable" in refused_data("rows.parquet")
    (here / "rows.parquet").write_bytes(b"question")
    assert "Parquet" in refused_data("rows.parquet")


@pytest.mark.parametrize(
    ("name", "content", "part"),
    [
        ("rows.jsonl", b"", "holds no record"),
        ("rows.jsonl", b"[1]\n", "should be an object"),
        ("rows.jsonl", b'{"question": ""}\n', "rows.jsonl, line 1"),
        ("rows.jsonl", b"not json\n", "not valid JSON"),
        ("rows.jsonl", b'{"question": "caf\xe9"}\n', "UTF-8"),
        ("rows.json", b"[", "not valid JSON"),
        ("rows.csv", b"question;context;answer\na;b;c\n", "separated by"),
        ("rows.txt", b"hello", "the ending should be"),
        ("rows.jsonl", b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    ],
)
def test_first_records_that_do_not_fit_are_told(here, name, content, part):
    (here / name).write_bytes(content)
    assert part in refused_data(name)


def test_records_of_another_kind_are_told(here):
    message = refused_data(rest="format: native", kind="sep", splits="{test: 1.0}")
    assert "rows.jsonl, line 1" in message
    assert "look like" not in message  # nobody can tell what they are


SEP = {
    **dict.fromkeys(("system_prompt_clean", "prompt_clean", "system_prompt_instructed", "prompt_instructed"), "text"),
    "witness": "cat",
    "info": {"type": "a", "subtask": "b", "subtask_descr": "c", "appended_task_id": 1, "appended_type": "ll"},
}
SEP["info"]["is_insistent"] = True
MMLU = {"question": "What?", "choices": ["a", "b"], "answer": 1, "subject": "logic"}
MESSAGES = {"messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hello"}]}


@pytest.mark.parametrize(
    ("row", "rest", "kind", "advice"),
    [
        (SEP, "format: native", "conversation", "look like sep: say `kind: sep`."),
        (SEP, "format: messages", "conversation", "look like sep: say `kind: sep` and `format: native`."),
        (MMLU, "format: native", "gsm8k", "look like mmlu: say `kind: mmlu`."),
        ({"question": "1 + 1?", "answer": "#### 2"}, "format: native", "mmlu", "look like gsm8k: say `kind: gsm8k`."),
        (MESSAGES, "format: native", "sep", "look like conversation: say `kind: conversation` and `format: messages`."),
        (MESSAGES, "format: native", "conversation", "look like conversation: say `format: messages`."),
        ({"turns": []}, "format: native", "conversation", None),
        ({**MMLU, "answer": 7}, "format: native", "mmlu", None),
        ({"prompt": "Hello", "reply": "Hello"}, "format: native", "conversation", None),
    ],
)
def test_records_of_another_kind_come_with_the_kind_that_they_are_of(here, row, rest, kind, advice):
    (here / "rows.jsonl").write_text(json.dumps(row) + "\n")
    message = refused_data(rest=rest, kind=kind, splits="{test: 1.0}")
    assert "rows.jsonl, line 1: " in message
    assert message.endswith(f"These records {advice}") if advice else "look like" not in message, message


def test_a_job_that_reads_a_download_tells_the_kind_too(here):
    """What is downloaded cannot be looked at when the plan is made."""
    (here / "download").mkdir()
    (here / "download" / "train.jsonl").write_text(json.dumps(SEP) + "\n")
    source, splits = {"hub": "a/b", "revision": "1"}, {"all": "train", "half": 0.5}
    dataset = entities.Dataset.model_construct(kind="conversation", format="native", source=source, splits=splits)
    for split, read in (("all", here / "download"), ("half", here / "download" / "train.jsonl")):
        with (
            pytest.raises(RecordError, match=r"^mine\. These records look like sep: say `kind: sep`\.$"),
            sources.told_of_other_kinds(dataset, read, split),
        ):
            raise RecordError("mine.")
    with sources.told_of_other_kinds(dataset, here, "half"):
        pass


def test_the_kind_of_a_csv_file_is_told_too(here):
    (here / "rows.csv").write_text('question,answer\n1 + 1?,"Two.\n#### 2"\n')
    assert "say `kind: gsm8k`." in refused_data("rows.csv", "format: native", "safety", "{test: 1.0}")


def test_a_split_without_a_file_is_told_and_every_file_is_looked_at(here):
    plan.records_files(data("{train: rows.jsonl, validation: rows.jsonl}"), "own", "train")
    with pytest.raises(ConfigurationError, match=r'mine\.yaml:3, datasets\.own\.splits\.validation: .*"validation"'):
        plan.records_files(data("{train: rows.jsonl}"), "own", "train")
    assert "does not exist" in refused_data("{train: rows.jsonl, validation: row.jsonl}")


def test_parts_are_looked_at_one_by_one(here):
    (here / "parts").mkdir()
    (here / "rows.jsonl").rename(here / "parts" / "a.jsonl")
    plan.records_files(data("parts", f"{FIELDS}, parts: {{a.jsonl: {{level: 0}}}}"), "own", "train")
    with pytest.raises(ConfigurationError, match=r'mine\.yaml:3, datasets\.own\.parts\.b\.jsonl: "parts/b\.jsonl"'):
        plan.records_files(data("parts", f"{FIELDS}, parts: {{b.jsonl: {{level: 0}}}}"), "own", "train")


# --- vectors, and all of it ---


def test_a_published_file_is_looked_for(here):
    known = loaded("traits:", "  evil: {files: {qwen2.5-7b: evli.pt}}")
    (here / "evil.pt").touch()
    with pytest.raises(ConfigurationError, match=r'mine\.yaml:3, traits\.evil\.files.*Did you mean "evil\.pt"'):
        plan_vectors.published_vectors(known, "qwen2.5-7b", "base", "evil")


def test_all_that_the_studies_use_is_looked_at_and_nothing_else(here):
    lines = ["models:", "  mine: {source: {path: my-modle}, template: chat, "]
    lines += ["    resources: {train: {hours: 1, mem_gb: 4}, generate: {hours: 1, mem_gb: 4}}}", "studies:"]
    shown = "tables: [], figures: [], claims: []"
    sources.check(loaded(*lines, f"  aside: {{models: [qwen2.5-7b], recipes: [vanilla], {shown}}}"))
    with pytest.raises(ConfigurationError, match="my-modle"):
        sources.check(loaded(*lines, f"  aside: {{models: [mine], recipes: [vanilla], {shown}}}"))
    sources.check(loading.load(overlays.read([], CONFIG), CONFIG))
