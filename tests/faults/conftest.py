"""The world that is damaged: everything the smallest configurations make, and an attacked model beside it."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from bulwark import seals
from tests.conftest import Checkout
from tests.faults.damage import Tally


@pytest.fixture(scope="session")
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """A copy of its own, since it is damaged and mended in place."""
    given = request.config.getoption("--faults-world")
    made = Path(given) if given else request.getfixturevalue("steered").folder
    copy = Checkout(tmp_path_factory.mktemp("faults") / "bulwark")
    shutil.copytree(made, copy.folder, symlinks=True)
    return copy


@pytest.fixture
def inside(world: Checkout, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The world as the working directory; nothing that this process has read of it counts as known."""
    monkeypatch.chdir(world.folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(world.folder / ".cache"))
    seals._found.clear()
    return world.folder


@pytest.fixture
def faults(request: pytest.FixtureRequest) -> int:
    """How many faults each test of results tries."""
    return request.config.getoption("--faults")


@pytest.fixture
def drawn(request: pytest.FixtureRequest) -> random.Random:
    return random.Random(f"{request.config.getoption('--faults-seed')}/{request.node.name}")


@pytest.fixture
def tally(record_property) -> Iterator[Tally]:
    """Counts of this test's faults, for the line at the end; the test fails if one was silent or a riddle."""
    counts = Tally()
    yield counts
    record_property("faults", dict(counts.counts))
    assert not counts.bad, f"{len(counts.bad)} faults, among them:\n" + "\n".join(counts.bad[:10])


# What lies below results/ and is nobody's input: it tells people how a run went.
UNSEALED = ("logs", "timings")
PASSING = ("tensorboard", "job.json")


def sealed_files(folder: Path) -> dict[str, list[str]]:
    """{file below results/: the sealed results it belongs to}; to itself, or to the manifests that list it."""
    found: dict[str, list[str]] = {}
    for path in sorted((folder / "results").rglob("*")):
        name = path.relative_to(folder).as_posix()
        if not path.is_file() or path.parts[len(folder.parts) + 1] in UNSEALED or set(PASSING) & set(path.parts):
            continue
        if path.name.startswith("."):
            continue
        if name.endswith(seals.ENDING):
            found[name] = [name.removesuffix(seals.ENDING)]
        elif seals.is_manifest(name) or seals.seal_of(path).exists():
            found[name] = [name]
        else:
            found.setdefault(name, [])
        if seals.is_manifest(name):
            for entry in seals.read_manifest(Path(path))["files"]:
                beside = os.path.relpath(seals.beside(path, entry["name"]), folder)
                found.setdefault(beside, []).append(name)
    return found
