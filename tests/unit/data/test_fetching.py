"""Downloads: pinned, retried, and every refusal says what to do. No network: the calls are replaced."""

from __future__ import annotations

import hashlib
import subprocess
import threading
import urllib.error
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import tenacity
from huggingface_hub import errors
from tiny_tokenizers import tiny_tokenizer

from bulwark.data import downloads
from bulwark.data.downloads import DownloadError, download, fetch
from bulwark.errors import CheckpointError, without_credentials
from bulwark.models import manifests
from bulwark.models.checkpoints import load_tokenizer
from bulwark.models.origin import adopt_model, fetch_model

COMMIT = "7b3ec87dbcf7f37bc1ab98d8dcf50fac097aec85"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """Stands for the Hub: raises the given errors first, then delivers one file."""
    monkeypatch.setattr(downloads, "_SECONDS", tenacity.wait_none())
    calls, faults = [], []

    def snapshot_download(repository, **options):
        calls.append({"repository": repository, **options})
        if faults:
            raise faults.pop(0)
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / "data" / "a.json").write_text("[]")
        return options["local_dir"]

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return SimpleNamespace(calls=calls, faults=faults, folder=tmp_path / "data")


def answered(kind, status):
    """An error as the Hub's client makes it from an answer with this status."""
    error = kind.__new__(kind)
    Exception.__init__(error, f"{status}")
    error.response = SimpleNamespace(status_code=status)
    return error


def test_a_pinned_repository_is_loaded_into_the_folder(hub):
    assert fetch("a/b", COMMIT, hub.folder, "dataset", ["*.json"]) == hub.folder
    (call,) = hub.calls
    assert call == {
        "repository": "a/b",
        "repo_type": "dataset",
        "revision": COMMIT,
        "local_dir": str(hub.folder),
        "allow_patterns": ["*.json"],
    }
    fetch("a/b", COMMIT, hub.folder, "model")
    assert hub.calls[1]["allow_patterns"] is None


@pytest.mark.parametrize("revision", [None, "main", "v1.0", COMMIT[:12], COMMIT.upper()])
def test_an_unpinned_revision_is_refused(hub, revision):
    with pytest.raises(DownloadError, match=r"no commit: .* 40 hexadecimal digits .*/datasets/a/b/commits/main"):
        fetch("a/b", revision, hub.folder, "dataset")
    assert hub.calls == []


def test_network_faults_are_retried(hub):
    hub.faults += [ConnectionError("away"), answered(errors.HfHubHTTPError, 503), TimeoutError()]
    fetch("a/b", COMMIT, hub.folder, "model")
    assert len(hub.calls) == 4
    hub.faults += [errors.LocalEntryNotFoundError("no network")] * 5
    with pytest.raises(DownloadError, match="in 5 attempts"):
        fetch("a/b", COMMIT, hub.folder, "model")


@pytest.mark.parametrize(
    ("kind", "status", "remedy"),
    [
        (errors.GatedRepoError, 403, "Accept its licence at https://huggingface.co/a/b .*HF_TOKEN"),
        (errors.RevisionNotFoundError, 404, "has no commit"),
        (errors.RepositoryNotFoundError, 404, "Check the name"),
    ],
)
def test_refusals_say_what_to_do_and_are_not_retried(hub, kind, status, remedy):
    hub.faults.append(answered(kind, status))
    with pytest.raises(DownloadError, match=remedy):
        fetch("a/b", COMMIT, hub.folder, "model")
    assert len(hub.calls) == 1


def test_another_fault_is_not_hidden(hub):
    hub.faults.append(answered(errors.HfHubHTTPError, 400))
    with pytest.raises(errors.HfHubHTTPError):
        fetch("a/b", COMMIT, hub.folder, "model")


def test_a_file_with_its_checksum(tmp_path, monkeypatch):
    monkeypatch.setattr(downloads, "_SECONDS", tenacity.wait_none())
    source = tmp_path / "source.json"
    source.write_text("[1]")
    right = hashlib.sha256(b"[1]").hexdigest()
    path = tmp_path / "deep" / "file.json"
    assert download(source.as_uri(), right, path).read_text() == "[1]"
    with pytest.raises(DownloadError, match=f"has the SHA-256 {right}, not 00"):
        download(source.as_uri(), "00", tmp_path / "other.json")
    with pytest.raises(DownloadError, match="has no sha256"):
        download(source.as_uri(), None, tmp_path / "other.json")
    with pytest.raises(DownloadError, match="could not be downloaded"):
        download((tmp_path / "none").as_uri(), right, tmp_path / "other.json")
    assert sorted(file.name for file in path.parent.iterdir()) == ["file.json"]
    assert not (tmp_path / "other.json").exists()


def test_an_archive_that_git_names_is_unpacked_beside_itself(tmp_path, monkeypatch):
    monkeypatch.setattr(downloads, "_SECONDS", tenacity.wait_none())
    source, path = tmp_path / "source.zip", tmp_path / "download" / "data.zip"
    with zipfile.ZipFile(source, "w") as archive:
        archive.writestr("dataset/evil/normal.jsonl", "{}")
    git = ["git", "hash-object", str(source)]
    name = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    with pytest.raises(DownloadError, match=f"has the Git name {name}, not 00"):
        download(source.as_uri(), None, path, "00")
    assert not list(path.parent.iterdir())
    download(source.as_uri(), None, path, name)
    assert (path.parent / "dataset/evil/normal.jsonl").read_text() == "{}"


def test_a_web_server_in_trouble_is_asked_again(tmp_path, monkeypatch):
    monkeypatch.setattr(downloads, "_SECONDS", tenacity.wait_none())
    asked = []

    def urlopen(url, timeout):
        asked.append(url)
        raise urllib.error.HTTPError(url, 503 if len(asked) < 3 else 404, "trouble", {}, None)

    monkeypatch.setattr(downloads.urllib.request, "urlopen", urlopen)
    with pytest.raises(DownloadError, match="404"):
        download("https://example.org/a", "00", tmp_path / "a")
    assert len(asked) == 3


@pytest.fixture
def models(monkeypatch):
    """Stands for the Hub: a pretrained model with a bare tokenizer, and its chat model with another."""

    def snapshot_download(repository, local_dir, **options):
        folder = Path(local_dir)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text('{"model_type": "llama"}')
        (folder / "model.safetensors").write_bytes(b"weights of " + repository.encode())
        tiny_tokenizer("chatml" if "chat" in repository else "plain").save_pretrained(folder)
        return local_dir

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)


def test_a_base_model_gets_the_chat_tokenizer_of_its_family(models, tmp_path):
    output = tmp_path / "base" / "model.json"
    tokenizer = {"hub": "a/chat", "revision": COMMIT}
    source = {"hub": "a/base", "revision": COMMIT, "tokenizer": tokenizer, "pad_token": "<|im_start|>"}
    fetch_model(source, "alpaca", output)
    manifest = manifests.read_manifest(output)
    assert (manifest["template"], manifest["source"], manifest["weights"]) == ("alpaca", source, ".")
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {file["name"] for file in manifest["files"]}
    assert (output.parent / "model.safetensors").read_bytes() == b"weights of a/base"
    found = load_tokenizer(output.parent)
    assert found.pad_token == "<|im_start|>"
    assert found.chat_template == tiny_tokenizer("chatml").chat_template
    own = tmp_path / "own" / "model.json"
    fetch_model({"hub": "a/base", "revision": COMMIT, "tokenizer": None, "pad_token": "<|endoftext|>"}, "chat", own)
    assert load_tokenizer(own.parent).pad_token == "<|endoftext|>"
    with pytest.raises(CheckpointError, match='does not know the padding token "<pad>"'):
        fetch_model({**source, "pad_token": "<pad>"}, "alpaca", tmp_path / "other" / "model.json")
    assert not (tmp_path / "other" / "model.json").exists()


def test_a_users_model_stays_where_it_is(models, tmp_path):
    folder = tmp_path / "mine"
    huggingface_hub.snapshot_download("a/chat", str(folder))
    output = tmp_path / "results" / "models" / "mine" / "model.json"
    adopt_model(folder, "chat", output)
    manifest, weights, template = manifests.open_manifest(output)
    assert (manifest, weights.resolve(), template) == (output, folder.resolve(), "chat")
    (folder / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(CheckpointError, match="changed or cut"):
        manifests.open_manifest(output)
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        adopt_model(tmp_path, "chat", output)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="has no tokenizer"):
        adopt_model(tmp_path, "chat", output)


def test_a_connection_that_is_lost_is_tried_again_and_called_that(tmp_path, monkeypatch, caplog):
    whole, asked = b"x" * 1000, []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(200)
            self.send_header("Content-Length", str(len(whole)))
            self.end_headers()
            self.wfile.write(whole if self.path == "/mended" and len(asked) > 2 else whole[:400])

        def log_message(self, *arguments):
            """Nothing on the terminal."""

    monkeypatch.setattr(downloads, "_SECONDS", tenacity.wait_none())
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    try:
        downloads.download(f"{address}/mended", hashlib.sha256(whole).hexdigest(), tmp_path / "a")
        assert (tmp_path / "a").read_bytes() == whole
        assert len(asked) == 3
        with pytest.raises(downloads.DownloadError, match=r"lost after 400 of 1000 bytes.*same command") as raised:
            downloads.download(f"{address}/broken?token=secret", "0" * 64, tmp_path / "b")
    finally:
        server.shutdown()
        server.server_close()
    assert "altered" not in str(raised.value)
    assert "secret" not in f"{raised.value} {caplog.text}"
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("https://me:secret@host/a/b.json", "https://host/a/b.json"),
        ("https://secret@host/b", "https://host/b"),
        ("at https://h/b?X-Amz-Signature=secret&x=1 there", "at https://h/b?… there"),
        ("https://h/b?token=secret", "https://h/b?…"),
        ("https://h/a@b", "https://h/a@b"),
        ("no address: me@host?", "no address: me@host?"),
    ],
)
def test_addresses_are_shown_without_credentials(address, shown):
    assert without_credentials(address) == shown


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("https://h/a/b.json", "b.json"),
        ("https://h/a/b.json?token=secret", "b.json"),
        ("https://me:secret@h/a/b.json?download=1&x=y/z#secret", "b.json"),
        ("https://h/a%20b.csv", "a b.csv"),
        ("https://h/a%2Fb.csv", "b.csv"),
        ("https://h/a/", "a"),
    ],
)
def test_a_file_is_called_as_its_address_ends_without_the_query(address, name):
    assert downloads.name_of(address) == name


@pytest.mark.parametrize("address", ["https://h", "https://h/", "https://h/?f=b.json&token=secret", "https://h/a/.."])
def test_an_address_of_no_file_is_refused(address):
    with pytest.raises(DownloadError, match=r"names no file\. Give the address of one file") as raised:
        downloads.name_of(address)
    assert "secret" not in str(raised.value)


def test_the_script_of_downloads_names_files_without_the_query():
    """It is Snakemake's: that it asks for the name is all that can be seen of it here."""
    script = (Path(__file__).parents[3] / "workflow" / "scripts" / "download_dataset.py").read_text()
    assert '{name_of(source["url"]): source}' in script
    assert "told.parent / name," in script
