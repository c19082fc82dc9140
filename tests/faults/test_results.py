"""Damage to every file below results/, of every kind: whoever reads it says which file, and what to do.

A fault is told twice: by the plan, before any job (`bulwark.seals.damage`), and by the job that reads the file
(`bulwark.jobs.sealing.verified`; for a model also by opening it). Silent is what only one of them sees.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from bulwark import seals
from bulwark.errors import BulwarkError
from bulwark.jobs.sealing import verified
from bulwark.models import manifests
from tests.faults import damage
from tests.faults.conftest import sealed_files
from tests.faults.damage import Tally, put_back

DAMAGES = {
    "flipped bit": damage.flip,
    "flipped bit, times kept": damage.flip_silently,
    "truncated": damage.truncate,
    "emptied": damage.empty,
    "zeroed block": damage.zero,
    "appended": damage.append,
    "dropped lines": damage.drop,
    "deleted": damage.delete,
    "a folder in its place": damage.fold,
    "nested brackets": damage.nest,
}


def said_by_the_plan(result: str) -> str | None:
    if not Path(result).exists():
        return f"{result} is missing: made again"  # by Snakemake
    try:
        told = seals.damage(result)
    except BulwarkError as error:
        return str(error)
    if not told and seals.read(result) is None:
        told = f"{result} has no seal"
    return f"{told}: made again" if told else None


def said_by_the_job(result: str) -> str | None:
    """By a job that reads the result, and of a model by whoever opens it."""
    try:
        verified((result,))
        if seals.is_manifest(result):
            manifests.read_manifest(result)
            path, folder = Path(result), manifests.weights_folder(result)
            manifests.refuse_unlisted(folder, path, manifests.read_manifest(path, verify=False))
    except BulwarkError as error:
        return str(error)
    except Exception as error:  # a traceback is a riddle
        return f"{type(error).__name__}: {error}"
    return None


def check(tally: Tally, fault: str, file: str, owners: list[str], plan: bool = True) -> None:
    names = [file.removesuffix(seals.ENDING), *owners]
    for owner in owners:
        tally.note("told", f"{fault} of {file}, read with {owner}", said_by_the_job(owner), names)
        if plan:
            said = said_by_the_plan(owner)
            if said is None:
                tally.note("told", f"{fault} of {file}, plan of {owner}", said, names)


def drawn_files(inside: Path, drawn: random.Random, count: int, ending: str = "") -> list[tuple[str, list[str]]]:
    """Files with those they belong to: every kind of place equally often, whatever it holds most of."""
    files = {name: owners for name, owners in sealed_files(inside).items() if name.endswith(ending)}
    by_kind: dict[tuple[str, ...], list[str]] = {}
    for name in files:
        place = Path(name)
        by_kind.setdefault((place.parts[1], "".join(place.suffixes[-2:]), place.name.split(".")[0]), []).append(name)
    kinds = sorted(by_kind)
    drawn.shuffle(kinds)
    chosen = [drawn.choice(by_kind[kinds[number % len(kinds)]]) for number in range(count)]
    return [(name, files[name]) for name in chosen]


def test_every_file_below_results_is_sealed_or_listed(inside):
    """Logs and timings excepted: nobody reads them."""
    assert [name for name, owners in sealed_files(inside).items() if not owners] == []


def test_what_is_whole_is_never_refused(inside):
    for owners in sealed_files(inside).values():
        for owner in owners:
            assert said_by_the_job(owner) is None
            assert said_by_the_plan(owner) is None


@pytest.mark.parametrize("name", DAMAGES)
def test_damage(inside, drawn, faults, tally, name):
    for file, owners in drawn_files(inside, drawn, faults):
        path = inside / file
        before = path.read_bytes()
        with put_back(path):
            DAMAGES[name](path, drawn)
            if path.is_file() and path.read_bytes() == before:
                continue
            spared = name == "deleted" and seals.WEIGHTS.fullmatch(path.name)  # only who opens the model needs them
            large = path.exists() and path.stat().st_size > seals._GLANCED_BYTES
            check(tally, name, file, owners, plan=not spared and not (large and name == "flipped bit, times kept"))


def test_edited_documents(inside, drawn, faults, tally):
    """Configurations, manifests, seals, scores, provenance: a value is another, everything else is in order."""
    for file, owners in drawn_files(inside, drawn, faults, ".json"):
        with put_back(inside / file):
            damage.edit(inside / file, drawn)
            check(tally, "edit", file, owners)


def test_deleted_seals(inside, drawn, faults, tally):
    sealed = [name for name, owners in sealed_files(inside).items() if seals.seal_of(name).exists()]
    for file in drawn.sample(sealed, min(faults, len(sealed))):
        with put_back(seals.seal_of(file)):
            seals.seal_of(file).unlink()
            check(tally, "deleted seal", file, [file])


def test_exchanged_files(inside, drawn, faults, tally):
    """Of two seeds, recipes, benchmarks; alone, with their seals, and as a whole folder."""
    files = sealed_files(inside)
    pairs = [
        (one, other)
        for one in files
        for other in files
        if one < other and Path(one).parts[1] == Path(other).parts[1] and Path(one).suffixes == Path(other).suffixes
        if not one.endswith(seals.ENDING) and (inside / one).read_bytes() != (inside / other).read_bytes()
    ]
    same_size = [pair for pair in pairs if len({(inside / name).stat().st_size for name in pair}) == 1]
    for number in range(faults):
        one, other = drawn.choice(same_size if number % 2 and same_size else pairs)
        with_seals = number % 3 == 0 and all(seals.seal_of(name).exists() for name in (one, other))
        moved = [(one, other)] + [(f"{one}{seals.ENDING}", f"{other}{seals.ENDING}")] * with_seals
        with put_back(*(inside / name for pair in moved for name in pair)):
            for left, right in moved:
                exchange(inside / left, inside / right)
            for name, partner in ((one, other), (other, one)):
                check(tally, f"exchange with {partner}", name, files[name], plan=not with_seals)


def test_copied_folders(inside, drawn, tally):
    """A checkpoint in the place of another recipe's, whole and with its manifest."""
    folders = sorted(path.parent for path in inside.glob("results/checkpoints/*/*/seed*/checkpoint.json"))
    for one in folders:
        other = drawn.choice([folder for folder in folders if folder != one])
        with put_back(one):
            damage.shutil.rmtree(one)
            damage.shutil.copytree(other, one)
            name = (one / "checkpoint.json").relative_to(inside).as_posix()
            check(tally, f"copy of {other}", name, [name], plan=False)


@pytest.mark.parametrize(
    "name", ["model-00002-of-00002.safetensors", "pytorch_model.bin", "adapter_model.safetensors", "more.safetensors"]
)
def test_extra_weights(inside, tally, name):
    for path in sorted(inside.glob("results/checkpoints/*/*/seed*/checkpoint.json")):
        extra = manifests.weights_folder(path) / name
        with put_back(extra):
            extra.write_bytes(b"x" * 100)
            result = path.relative_to(inside).as_posix()
            tally.note("told", f"extra {name} in {result}", said_by_the_job(result), [name])


def exchange(one: Path, other: Path) -> None:
    left, right = one.read_bytes(), other.read_bytes()
    one.write_bytes(right)
    other.write_bytes(left)
