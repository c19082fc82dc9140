"""Manifests: what they list, when they are believed, and that they need no torch."""

import hashlib
import json
import math
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bulwark.errors import CheckpointError
from bulwark.files import digest, write_text
from bulwark.jobs import calls
from bulwark.models import manifests
from bulwark.models.manifests import (
    open_manifest,
    provenance,
    read_manifest,
    start_recipe,
    weights_folder,
    write_manifest,
)
from bulwark.training.saved.snapshots import take_snapshot


def folder_with(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        file = folder / name.replace("__", "/").replace("_json", ".json")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return folder


def test_a_manifest_lists_what_lies_beside_it(tmp_path):
    folder_with(tmp_path, config_json="{}", weights="abc", sub__part="de", training__state="x", job_json="{}")
    (tmp_path / ".hidden").write_text("h")
    written = write_manifest(tmp_path / "checkpoint.json", {"recipe": "aside", "seed": 0})
    assert [(entry["name"], entry["bytes"]) for entry in written["files"]] == [
        ("config.json", 2),
        ("sub/part", 2),
        ("weights", 3),
    ]
    assert written["files"][2]["sha256"] == hashlib.sha256(b"abc").hexdigest()
    assert read_manifest(tmp_path / "checkpoint.json") == read_manifest(tmp_path) == written
    assert (written["recipe"], written["weights"]) == ("aside", ".")
    assert weights_folder(tmp_path) == tmp_path
    again = write_manifest(tmp_path / "checkpoint.json", {"recipe": "aside"})
    assert again["files"] == written["files"]  # neither itself nor a temporary file


def test_missing_and_changed_files_are_named(tmp_path):
    folder_with(tmp_path, config_json="{}", weights="abc")
    path = tmp_path / "checkpoint.json"
    with pytest.raises(CheckpointError, match=r"there is no manifest, so .* not a finished checkpoint"):
        read_manifest(path)
    write_manifest(path, {})
    (tmp_path / "weights").write_text("abd")
    with pytest.raises(CheckpointError, match=r"weights: its content is not what .* remove .*checkpoint\.json"):
        read_manifest(path)  # same size: only the hash can tell
    (tmp_path / "weights").write_text("ab")
    with pytest.raises(CheckpointError, match=r"weights: it has 2 bytes, but had 3 .* remove"):
        read_manifest(path)
    (tmp_path / "weights").unlink()
    with pytest.raises(CheckpointError, match=r"weights: it is missing\. Restore it"):
        read_manifest(path)
    assert len(read_manifest(path, verify=False)["files"]) == 2


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"files": [{"name": "a"}]}', '{"files": ['])
def test_what_is_not_a_manifest_is_refused(tmp_path, text):
    (tmp_path / "checkpoint.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"checkpoint\.json: damaged.* remove it"):
        read_manifest(tmp_path)


def test_a_manifest_needs_files_and_a_weights_folder(tmp_path):
    with pytest.raises(CheckpointError, match="no files to list"):
        write_manifest(tmp_path / "checkpoint.json", {})
    with pytest.raises(CheckpointError, match=r'weights folder "\.\./gone" does not exist'):
        write_manifest(tmp_path / "checkpoint.json", {"weights": "../gone"})
    assert list(tmp_path.iterdir()) == []


def test_a_content_that_json_cannot_hold_leaves_the_old_manifest(tmp_path):
    folder_with(tmp_path, weights="abc")
    write_manifest(tmp_path / "checkpoint.json", {"loss": 1.0})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_manifest(tmp_path / "checkpoint.json", {"loss": math.nan})
    assert read_manifest(tmp_path)["loss"] == 1.0
    assert sorted(file.name for file in tmp_path.iterdir()) == ["checkpoint.json", "weights"]


def test_a_recipe_starts_at_the_base_model_without_a_copy(tmp_path):
    model = folder_with(tmp_path / "results/models/tiny", config_json="{}", weights="abc") / "model.json"
    write_manifest(model, {"template": "chat"})
    start = tmp_path / "results/checkpoints/tiny/base/seed0/checkpoint.json"
    written = start_recipe(model, start, {"model": "tiny", "recipe": "base", "seed": 0})
    assert written["weights"] == "../../../../models/tiny"
    assert written["source"] == {"path": "../../../../models/tiny/model.json", "digest": digest(model)}
    assert open_manifest(start) == (start, model.parent, "chat")
    assert open_manifest(start.parent) == open_manifest(start)
    assert open_manifest(model.parent) == (model, model.parent, "chat")
    (model.parent / "weights").write_text("ab")
    with pytest.raises(
        CheckpointError, match=r"results/models/tiny/weights: it has 2 bytes.*remove .*models/tiny/model\.json and give"
    ):
        open_manifest(start)


def test_paths_upwards_hold_where_results_is_made_of_links(tmp_path):
    """On a cluster results/checkpoints is often a link to another disk."""
    elsewhere = tmp_path / "disk/checkpoints"
    elsewhere.mkdir(parents=True)
    model = folder_with(tmp_path / "results/models/tiny", weights="abc") / "model.json"
    (tmp_path / "results/checkpoints").symlink_to(elsewhere)
    write_manifest(model, {"template": "chat"})
    start = tmp_path / "results/checkpoints/tiny/base/seed0/checkpoint.json"
    start_recipe(model, start, {})
    assert open_manifest(start)[1] == model.parent
    assert write_manifest(start, {"weights": "../../../../models/tiny"})["files"][0]["bytes"] == 3


def test_links_of_a_hub_snapshot_are_followed(tmp_path):
    folder_with(tmp_path / "blobs", a1="abc")
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    (snapshot / "model.safetensors").symlink_to(tmp_path / "blobs/a1")
    (entry,) = write_manifest(snapshot / "model.json", {})["files"]
    known = "model.safetensors", 3, hashlib.sha256(b"abc").hexdigest()
    assert (entry["name"], entry["bytes"], entry["sha256"]) == known


def test_a_manifest_without_a_template_is_refused(tmp_path):
    folder_with(tmp_path, weights="abc")
    write_manifest(tmp_path / "checkpoint.json", {})
    with pytest.raises(CheckpointError, match="does not name the prompt template"):
        open_manifest(tmp_path)


def test_text_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    file = tmp_path / "new/text"
    write_text(file, "ä\n")
    assert file.read_bytes() == "ä\n".encode()

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write_text(file, "b")
    assert [(each.name, each.read_text()) for each in file.parent.iterdir()] == [("text", "ä\n")]


def test_digests(tmp_path):
    file = folder_with(tmp_path, one="abc") / "one"
    assert digest(file) == digest(str(file)) == hashlib.sha256(b"abc").hexdigest()
    assert digest({"b": [1, 2.5], "a": None}) == digest({"a": None, "b": [1, 2.5]})
    assert digest({"a": 1}) != digest({"a": 2})
    before = digest(tmp_path)
    (tmp_path / "one").rename(tmp_path / "two")
    assert digest(tmp_path) != before
    with pytest.raises(CheckpointError, match="no such file or folder"):
        digest(tmp_path / "gone")
    with pytest.raises(TypeError):
        digest({1, 2})


def test_provenance_tells_how_sums_are_rounded(monkeypatch):
    """Or that nobody has said: then another processor may give other numbers."""
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "avx2")
    monkeypatch.delenv("MKL_CBWR", raising=False)
    assert provenance()["hardware"]["rounding"] == {"ATEN_CPU_CAPABILITY": "avx2", "MKL_CBWR": None}
    assert set(manifests.ROUNDING) == set(calls.ROUNDING), "what the workflow sets is what is told"


def test_provenance_tells_with_what_and_on_what():
    told = provenance(started=time.time() - 5)
    assert 5 <= told["wall_seconds"] < 60
    assert {"torch", "transformers", "safetensors"} <= set(told["versions"])
    assert told["python"] == ".".join(map(str, sys.version_info[:3]))
    assert told["hardware"]["cpu_count"] == os.cpu_count()
    assert told["hardware"]["memory_bytes"] > 2**28
    assert told["hardware"]["cpu"]
    assert isinstance(told["hardware"]["gpus"], list)
    assert json.loads(json.dumps(told)) == told
    assert "wall_seconds" not in provenance()


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_the_commit_is_that_of_the_checkout_that_tracks_the_code(tmp_path):
    def git(*arguments):
        identity = ["-c", "user.name=tester", "-c", "user.email=tester@example.org"]
        done = subprocess.run(
            ["git", "-C", tmp_path, *identity, *arguments], check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    folder_with(tmp_path, code="1", installed="2")
    assert manifests._git(tmp_path / "code") == {"commit": None, "dirty": None}
    git("init", "-q")
    git("add", "code")
    git("commit", "-q", "-m", "first")
    (tmp_path / "installed").unlink()
    commit = git("rev-parse", "HEAD")
    assert manifests._git(tmp_path / "code") == {"commit": commit, "dirty": False}
    (tmp_path / "code").write_text("3")
    (tmp_path / "installed").write_text("2")
    assert manifests._git(tmp_path / "code") == {"commit": commit, "dirty": True}
    assert manifests._git(tmp_path / "installed") == {"commit": None, "dirty": None}  # an environment in a checkout


def test_gpus_come_from_nvidia_smi(tmp_path, monkeypatch):
    tool = tmp_path / "nvidia-smi"
    monkeypatch.setenv("PATH", str(tmp_path) + os.pathsep + os.environ["PATH"])

    def answer(script):
        tool.write_text(f"#!/bin/sh\n{script}\n")
        tool.chmod(0o755)
        return manifests._gpus()

    assert (
        answer("echo 'NVIDIA H100, 81559 MiB, 570.1'; echo 'NVIDIA H100, 81559 MiB, 570.1'")
        == [{"name": "NVIDIA H100", "memory": "81559 MiB", "driver": "570.1"}] * 2
    )
    assert answer("echo 'no devices were found'; exit 6") == [
        {"name": "unknown: nvidia-smi failed (no devices were found)"}
    ]


def test_neither_torch_nor_transformers_is_imported():
    code = (
        "import sys, bulwark.models.manifests as m; m.provenance(); print({'torch', 'transformers'} & set(sys.modules))"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(manifests.__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.strip() == "set()"


def test_a_snapshot_is_a_checkpoint_in_the_folder_of_its_training(tmp_path):
    training = folder_with(
        tmp_path / "m/sft/seed0", weights="end", snapshots__40__weights="abc", snapshots__4__weights="x"
    )
    made = {"kind": "sft", "settings": {"a": 1}, "template": "chat", "carried": ["extra"]}
    write_manifest(training / "checkpoint.json", made)
    output = tmp_path / "m/sft@40/seed0/checkpoint.json"
    written = take_snapshot(training / "checkpoint.json", 40, output, {"recipe": "sft@40"})
    assert [entry["name"] for entry in written["files"]] == ["../../sft/seed0/snapshots/40/weights"]
    assert (written["recipe"], written["step"], written["kind"], written["carried"]) == ("sft@40", 40, "sft", ["extra"])
    path, folder, template = open_manifest(output)
    assert (path, template) == (output, "chat")
    assert (folder / "weights").read_text() == "abc"
    assert "training" not in written, "of a training that does not say what it had spent by then"
    spent = [{"steps": n, "tokens": 10 * n, "target_tokens": n, "seconds": n / 2} for n in (4, 40)]
    report = {"steps": 80, "tokens": 800, "parameters": 7, "trainable_parameters": 5, "loss": [], "spent": spent}
    write_manifest(training / "checkpoint.json", made | {"training": report})
    written = take_snapshot(training / "checkpoint.json", 40, output, {"recipe": "sft@40"})
    assert written["training"] == {"parameters": 7, "trainable_parameters": 5, **spent[1]}
    with pytest.raises(CheckpointError, match="kept no snapshot after 41"):
        take_snapshot(training / "checkpoint.json", 41, tmp_path / "checkpoint.json", {})
    (training / "snapshots/40/weights").write_text("abd")
    with pytest.raises(CheckpointError, match="snapshots/40/weights"):
        read_manifest(output)
