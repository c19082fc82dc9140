"""Seals: every damage is told, nothing else is, and what is remembered never lies."""

import json
import os
import time
from pathlib import Path

import pytest

from bulwark import seals
from bulwark.config.standing.standing import Standings, Task
from bulwark.errors import BulwarkError, CheckpointError
from bulwark.files import digest
from bulwark.jobs.sealing import verified
from bulwark.models import manifests


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A place of its own for what is remembered."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    seals._found.clear()
    return tmp_path / "cache/bulwark/verified"


@pytest.fixture
def scores(tmp_path):
    path = tmp_path / "results/scores/m/base/seed0/sep.json"
    path.parent.mkdir(parents=True)
    path.write_text('{"n": 1}')
    seals.seal(path, "a" * 64, {"results/answers/x.jsonl": "b" * 64}, "score_answers")
    return path


def old(path):
    """Let a file's last change be long ago, as far as its own times tell."""
    os.utime(path, ns=(time.time_ns() - 10**10,) * 2)


def test_a_sealed_file_is_what_it_was(scores):
    told = seals.verify(scores)
    assert told == seals.read(scores)
    assert (told.bytes, told.asked, told.rule) == (8, "a" * 64, "score_answers")
    assert told.inputs == {"results/answers/x.jsonl": "b" * 64}
    assert seals.content(scores) == told.sha256 == digest(scores)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: p.write_text('{"n": 2}'), r"sep\.json: its content is not .* Remove .*sep\.json and give"),
        (lambda p: p.write_text('{"n": }'), r"sep\.json: it has 7 bytes, but had 8"),
        (lambda p: p.unlink(), r"sep\.json: it is missing\. .*same command"),
        (lambda p: seals.seal_of(p).unlink(), r"sep\.json: it has no seal .* Remove .*sep\.json and give"),
        (lambda p: seals.seal_of(p).write_text("{"), r"sep\.json\.seal\.json: damaged.* Remove"),
        (lambda p: seals.seal_of(p).write_bytes(b"\xff"), r"sep\.json\.seal\.json: damaged.* Remove"),
        (lambda p: seals.seal_of(p).write_text("[]"), r"sep\.json\.seal\.json: damaged.* Remove"),
        (lambda p: seals.seal_of(p).write_text("[" * 100_000), r"sep\.json\.seal\.json: damaged.* Remove"),
        (lambda p: seals.seal_of(p).write_text(seals._text({"check": digest({})})), r"seal\.json: not a seal.*Remove"),
    ],
)
def test_damage_is_told_with_its_remedy(scores, damage, message):
    damage(scores)
    with pytest.raises(CheckpointError, match=message):
        seals.verify(scores)


@pytest.mark.parametrize("key", ["path", "bytes", "sha256", "asked", "inputs", "rule", "modified"])
def test_an_edited_seal_is_told(scores, key, tmp_path, monkeypatch):
    """Also one in which only what the plan reads was changed."""
    monkeypatch.chdir(tmp_path)
    known = json.loads(seals.seal_of(scores).read_text())
    known[key] = {"bytes": 9, "inputs": {}}.get(key, "c" * 64)
    seals.seal_of(scores).write_text(json.dumps(known))
    for reader in (seals.read, seals.verify, seals.content):
        with pytest.raises(CheckpointError, match=r"sep\.json\.seal\.json: damaged or edited"):
            reader(scores.relative_to(tmp_path))


def test_results_that_were_exchanged_are_told_where_place_matters(scores, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    here, there = "results/scores/m/base/seed0/sep.json", "results/scores/m/base/seed1/sep.json"
    (tmp_path / there).parent.mkdir()
    for path, text in ((here, '{"n": 1}'), (there, '{"n": 3}')):
        (tmp_path / path).write_text(text)
        seals.seal(path, "a" * 64, {}, "score_answers")
    (tmp_path / "results").rename(tmp_path / "moved")  # the whole of it may lie elsewhere
    seals.verify(tmp_path / "moved/scores/m/base/seed0/sep.json", in_place=True)
    (tmp_path / "moved").rename(tmp_path / "results")
    for ending in ("", seals.ENDING):
        os.rename(here + ending, "aside")
        os.rename(there + ending, here + ending)
        os.rename("aside", there + ending)
    seals.verify(here)
    with pytest.raises(
        CheckpointError, match=r"seed0/sep\.json: what lies here was made as .*seed1/sep\.json.* Remove"
    ):
        seals.verify(here, in_place=True)


def test_a_manifest_is_the_seal_of_its_folder(tmp_path):
    path = tmp_path / "results/models/m/model.json"
    path.parent.mkdir(parents=True)
    (path.parent / "weights").write_text("abc")
    manifests.write_manifest(path, {"template": "chat", "numbers": {1: (2, 3)}, "time": 1})
    before = seals.read(path)
    assert (before.asked, before.inputs) == ("", {})
    seals.seal(path, "a" * 64, {"mine": "b" * 64}, "adopt_model")
    told = seals.verify(path)
    assert (told.asked, told.inputs, told.rule) == ("a" * 64, {"mine": "b" * 64}, "adopt_model")
    assert not seals.seal_of(path).exists()
    manifests.write_manifest(path, {"template": "chat", "time": 2})
    assert seals.content(path) == told.sha256 == before.sha256  # a time is no content
    manifests.write_manifest(path, {"template": "alpaca"})
    assert seals.content(path) != told.sha256
    (path.parent / "weights").write_text("abd")
    with pytest.raises(
        CheckpointError, match=r"weights: its content .* remove .*model\.json and give the same command"
    ):
        seals.verify(path)
    path.write_text(path.read_text().replace("alpaca", "alpacb"))
    for reader in (seals.read, seals.verify, seals.content, manifests.read_manifest, manifests.weights_folder):
        with pytest.raises(CheckpointError, match=r"model\.json: damaged or edited.* remove it"):
            reader(path)


def test_a_manifest_is_written_with_its_seal_at_once(tmp_path, monkeypatch):
    """So that a job which is killed behind it leaves a whole checkpoint; other manifests are none of its business."""
    asked = {"path": (tmp_path / "checkpoint.json").as_posix(), "asked": "a", "rule": "r", "sources": {"x": "y"}}
    monkeypatch.setenv(seals.VARIABLE, json.dumps(asked))
    for name in ("checkpoint.json", "other/checkpoint.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).with_name("weights").write_text("abc")
        manifests.write_manifest(tmp_path / name, {})
    assert seals.read(tmp_path / "checkpoint.json").inputs == {"x": "y"}
    assert seals.read(tmp_path / "other/checkpoint.json").asked == ""


def test_files_and_folders_of_the_user_are_watched_whole(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "weights").write_bytes(bytes(3 << 20))
    before = seals.content(folder), seals.content(folder / "weights")
    with (folder / "weights").open("r+b") as file:
        file.seek(2 << 20)
        file.write(b"x")
    assert seals.content(folder) != before[0]
    assert seals.content(folder / "weights") != before[1]
    with pytest.raises(CheckpointError, match="no such file"):
        seals.content(tmp_path / "none")


def test_a_seal_beside_a_file_of_the_users_is_not_believed(scores, tmp_path):
    """A result that was copied out of results/ and edited there, say."""
    mine = tmp_path / "mine.json"
    for ending in ("", seals.ENDING):
        Path(f"{mine}{ending}").write_bytes(Path(f"{scores}{ending}").read_bytes())
    before = seals.content(mine)
    mine.write_text('{"n": 2}')
    assert seals.content(mine) == seals.own_content(mine) == verified((str(mine),))[str(mine)] == digest(mine) != before
    seals.seal_of(mine).write_text("{")
    assert seals.content(mine) == digest(mine)


@pytest.mark.parametrize("name", seals.MANIFESTS)
def test_a_file_of_the_users_may_have_the_name_of_a_manifest(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    mine = Path("data", name)
    mine.write_text('[{"question": "a"}]')
    assert seals.own_content(mine) == digest(mine)
    assert verified((str(mine),)) == {str(mine): digest(mine)}
    task = Task("asked", (str(mine),), ("results/x.json",))
    Path("results").mkdir()
    Path("results/x.json").write_text("1")
    seals.seal("results/x.json", "asked", {str(mine): digest(mine)}, "prepare")
    assert Standings([task]).of(task).state == "done"
    mine.write_text('[{"question": "b"}]')
    assert "another content now" in Standings([task]).of(task).reason


def fold(path):
    path.unlink(missing_ok=True)
    path.mkdir()


def link_to_itself(path):
    path.unlink(missing_ok=True)
    path.symlink_to(path.name)


def file_above(path):
    """A file where the folder of the results was."""
    path.parent.rename(path.parent.with_name("aside"))
    path.parent.write_text("x")


@pytest.mark.parametrize("which", ["result", "seal", "manifest", "listed"])
@pytest.mark.parametrize(
    ("hurt", "message"),
    [
        (fold, r"{}: it is a folder, where a file has to be\. Remove it and give"),
        (link_to_itself, r"{}: it is a link that leads to itself\. Remove it and give"),
        (file_above, r"{}: results/one is a file, where a folder has to be\. Move it away and give"),
    ],
)
def test_what_cannot_be_opened_is_told_with_its_remedy(tmp_path, monkeypatch, which, hurt, message):
    """By the plan as by the job: neither takes it for a result that has to be made again."""
    monkeypatch.chdir(tmp_path)
    folder = Path("results/one")
    folder.mkdir(parents=True)
    (folder / "listed").write_text("abc")
    result = folder / "checkpoint.json" if which in ("manifest", "listed") else folder / "x.json"
    if which in ("manifest", "listed"):
        manifests.write_manifest(result, {"path": str(result), "asked": "asked", "sources": {}, "rule": "r"})
    else:
        result.write_text("1")
        seals.seal(result, "asked", {}, "r")
    hurt({"seal": seals.seal_of(result), "listed": folder / "listed"}.get(which, result))
    task = Task("asked", (), (str(result),))
    for reader in (
        seals.verify,
        seals.damage,
        lambda path: verified((str(path),)),
        lambda _: Standings([task]).of(task),
    ):
        with pytest.raises(BulwarkError, match=message.format(r"results/one\S*")):
            reader(result)


def test_a_seal_of_somebody_else_that_may_not_be_read_is_told_apart(scores, monkeypatch):
    def refused(self, **_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_text", refused)
    for reader in (seals.read, seals.verify, seals.damage):
        with pytest.raises(BulwarkError, match=r"seal\.json: .* may not read it\. Correct its permissions") as told:
            reader(scores)
        assert not isinstance(told.value, CheckpointError)  # a plan must not make it again


def test_a_glance_sees_whatever_was_written_since(scores, tmp_path):
    large = scores.with_name("large.jsonl")
    large.write_bytes(bytes(1 << 17))
    seals.seal(large, "a", {}, "r")
    folder = tmp_path / "results/models/m"
    folder.mkdir(parents=True)
    for name, size in (("weights", 1 << 17), ("config.json", 4)):
        (folder / name).write_bytes(bytes(size))
    manifests.write_manifest(folder / "model.json", {"template": "chat"})
    of = {scores: scores, large: large, folder / "weights": folder / "model.json"}
    of[folder / "config.json"] = folder / "model.json"
    assert not any(seals.damage(sealed) for sealed in of.values())
    for file, sealed in of.items():
        whole, times = file.read_bytes(), (file.stat().st_atime_ns, file.stat().st_mtime_ns)
        file.write_bytes(b"x" + whole[1:])
        assert seals.damage(sealed) == f"{file} has another content than when it was made"
        file.write_bytes(whole)
        assert seals.damage(sealed) == ""  # only its time is another
        os.utime(file, ns=times)
        file.write_bytes(whole[:-1])
        os.utime(file, ns=times)
        sizes = len(whole) - 1, len(whole)
        assert seals.damage(sealed) == "{} has {} bytes, but had {} when it was made".format(file, *sizes)
        file.unlink()
        assert seals.damage(sealed) == f"{file} is missing"
        file.write_bytes(whole)
    assert seals.damage(tmp_path / "no seal") == ""
    (folder / "model.safetensors").write_bytes(bytes(8))
    manifests.write_manifest(folder / "model.json", {"template": "chat"})
    (folder / "model.safetensors").unlink()
    assert seals.damage(folder / "model.json") == ""  # to save space
    with pytest.raises(CheckpointError, match=r"model\.safetensors: it is missing.*remove"):
        manifests.read_manifest(folder)


# What is remembered


@pytest.fixture
def large(tmp_path):
    path = tmp_path / "large"
    path.write_bytes(bytes(2 << 20))
    return path


@pytest.fixture
def reads(monkeypatch):
    """The files that were read whole."""
    seen = []
    real = seals.sha256_of
    monkeypatch.setattr(seals, "sha256_of", lambda path: seen.append(path.name) or real(path))
    monkeypatch.setattr(seals, "_SETTLED_SECONDS", -1.0)
    return seen


def again(path):
    """As another process would find it."""
    seals._found.clear()
    return seals.hashed(path)


def test_a_large_file_is_read_once(large, reads, tmp_path):
    first = seals.hashed(large)
    assert again(large) == first == digest(large)
    assert reads == ["large"]
    large.rename(tmp_path / "renamed")
    assert again(tmp_path / "renamed") == first
    assert len(reads) == 2


def test_every_change_is_read_again(large, reads):
    """Even one that keeps size and modification time."""
    seals.hashed(large)
    times = large.stat().st_atime_ns, large.stat().st_mtime_ns
    with large.open("r+b") as file:
        file.write(b"x")
    os.utime(large, ns=times)
    assert again(large) == digest(large)
    assert len(reads) == 2


def test_what_has_just_changed_is_not_remembered(large, reads, monkeypatch):
    monkeypatch.setattr(seals, "_SETTLED_SECONDS", 60.0)
    old(large)  # by its own time; the inode's says otherwise
    for _ in range(2):
        again(large)
    assert len(reads) == 2


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"state": [1], "sha256": "0"}'])
def test_a_damaged_memory_is_as_good_as_none(large, reads, cache, text):
    right = seals.hashed(large)
    (entry,) = cache.iterdir()
    whole = entry.read_text()
    entry.write_text(text)
    assert again(large) == right
    entry.write_text(whole.replace(right, "0" * 64))
    assert again(large) == right
    assert entry.read_text() == whole
    assert len(reads) == 3


def test_without_a_place_to_remember_everything_is_read(large, reads, cache):
    cache.parent.mkdir(parents=True)
    cache.write_text("in the way")
    assert again(large) == again(large) == digest(large)
    assert len(reads) == 2
