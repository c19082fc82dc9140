"""Downloads: pinned, retried, and every refusal says what to do. No network: the calls are replaced."""

from __future__ import annotations

import hashlib
import urllib.error
from types import SimpleNamespace

import huggingface_hub
import pytest
import tenacity
from huggingface_hub import errors

from bulwark import fetching
from bulwark.fetching import DownloadError, download, fetch

COMMIT = "7b3ec87dbcf7f37bc1ab98d8dcf50fac097aec85"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """Stands for the Hub: raises the given errors first, then delivers one file."""
    monkeypatch.setattr(fetching, "_SECONDS", tenacity.wait_none())
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
    with pytest.raises(DownloadError, match=r"no commit, .* 40 hexadecimal digits .*/datasets/a/b/commits/main"):
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
    monkeypatch.setattr(fetching, "_SECONDS", tenacity.wait_none())
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


def test_a_web_server_in_trouble_is_asked_again(tmp_path, monkeypatch):
    monkeypatch.setattr(fetching, "_SECONDS", tenacity.wait_none())
    asked = []

    def urlopen(url, timeout):
        asked.append(url)
        raise urllib.error.HTTPError(url, 503 if len(asked) < 3 else 404, "trouble", {}, None)

    monkeypatch.setattr(fetching.urllib.request, "urlopen", urlopen)
    with pytest.raises(DownloadError, match="404"):
        download("https://example.org/a", "00", tmp_path / "a")
    assert len(asked) == 3
