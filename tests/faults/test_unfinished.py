"""Damage to what a killed job leaves: finished answers, judgements, the journal of a search, the state of a training.

Either it is told, with line and remedy; or the job goes on, says what it makes again, and ends as if nothing had been.
"""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest

from bulwark import judges
from bulwark.errors import BulwarkError
from bulwark.judges import Judgement
from bulwark.models.answers import Answer, Partial
from tests.faults import damage

DAMAGES = {
    "flipped bit": damage.flip,
    "truncated": damage.truncate,
    "emptied": damage.empty,
    "zeroed block": damage.zero,
    "appended": damage.append,
    "dropped lines": damage.drop,
}
ANSWERS = [Answer(f"r{number}", f"the answer is {number * 37}", 5, "stop", False) for number in range(12)]


def answered(path: Path) -> list[Answer]:
    """A job that answers; what is kept already is not answered again."""
    with Partial(path, "settled") as kept:
        for answer in ANSWERS:
            asked = kept.digest(answer.id)
            if (answer.id, asked) not in kept.answers:
                kept.append(answer, asked)
                kept.answers[answer.id, asked] = answer
        return list(kept.answers.values())


@pytest.mark.parametrize("name", DAMAGES)
def test_answers(tmp_path, drawn, faults, tally, name, caplog):
    path = tmp_path / "sep.jsonl.partial"
    answered(path)
    whole = path.read_bytes()
    for number in range(faults):
        path.write_bytes(whole)
        DAMAGES[name](path, drawn)
        damaged = path.read_bytes()
        caplog.clear()
        with caplog.at_level(logging.INFO, logger="bulwark"):
            found = sorted(map(str, answered(path)))
        right = found == sorted(map(str, ANSWERS)) and len(path.read_bytes().splitlines()) == 1 + len(ANSWERS)
        shorter = whole.startswith(damaged) or b"".join(sorted(whole.splitlines())).find(damaged) >= 0
        said = caplog.text or ("generated again" if right and (shorter or name == "dropped lines") else None)
        said = f"{path.name}: {said}" if said and right else None
        tally.note("mended", f"{name} {number} of {path.name}", said, [path.name])


@pytest.mark.parametrize("name", DAMAGES)
def test_judgements(tmp_path, drawn, faults, tally, name):
    path = tmp_path / "sep.judgements.jsonl"
    right = {f"{number:064x}": Judgement(float(number % 10), None, "text") for number in range(12)}
    for digest, judgement in right.items():
        judges._keep(path, digest, judgement)
    whole = path.read_bytes()
    for number in range(faults):
        path.write_bytes(whole)
        DAMAGES[name](path, drawn)
        try:
            found = judges._kept(path)
            ours = all(asdict(found[key]) == asdict(right.get(key)) for key in found)
            said = f"{path.name}: the rest is made again" if ours else None  # what is lost is asked for again
        except BulwarkError as error:
            said = str(error)
        except Exception as error:
            said = f"{type(error).__name__}"
        tally.note("told", f"{name} {number} of {path.name}", said, [path.name])


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    from tests.unit.abliteration.test_abliteration_search import Examine, opened, score, settings_of

    folder = tmp_path_factory.mktemp("search")
    search = opened(folder, settings_of())
    search.run(Examine(), score)
    return (folder / "study.journal").read_bytes(), json.dumps(search.records())


@pytest.mark.parametrize("name", DAMAGES)
def test_journals(searched, tmp_path, drawn, faults, tally, name):
    """A search that goes on from a damaged journal says the line, or ends with the trials of a whole one."""
    from tests.unit.abliteration.test_abliteration_search import Examine, opened, score, settings_of

    whole, records = searched
    path = tmp_path / "study.journal"
    for number in range(max(2, faults // 8)):
        path.write_bytes(whole)
        DAMAGES[name](path, drawn)
        try:
            search = opened(tmp_path, settings_of())
            search.run(Examine(), score)
            said = f"{path.name}: the rest is made again" if json.dumps(search.records()) == records else None
        except BulwarkError as error:
            said = str(error)
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
        tally.note("told", f"{name} {number} of {path.name}", said, [path.name])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The state of a training that was stopped in the middle, and the weights of one that was not."""
    from tests.unit.training.test_training_state import run

    folder = tmp_path_factory.mktemp("training")
    whole, _ = run(folder / "whole", keep_best=True, save_every=None)
    run(folder / "parts", 5, keep_best=True)
    return folder / "parts" / "training", whole.model


@pytest.mark.parametrize("name", [*DAMAGES, "deleted", "exchanged"])
def test_training_states(trained, tmp_path, drawn, faults, tally, name):
    """A file of the state is damaged, or stands in another's place; resuming says so, or ends with the right bits."""
    from tests.unit.training.test_training_state import run, same_bits

    state, right = trained
    for number in range(max(3, faults // 10)):
        folder = tmp_path / str(number) / "training"
        shutil.copytree(state, folder)
        files = sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)
        path = drawn.choice(files)
        before = path.read_bytes()
        if name == "exchanged":
            other = drawn.choice([file for file in files if file != path])
            path.write_bytes(other.read_bytes())
            other.write_bytes(before)
        elif name == "deleted":
            path.unlink()
        else:
            DAMAGES[name](path, drawn)
        if path.exists() and path.read_bytes() == before:
            continue
        try:
            result, _ = run(tmp_path / str(number), keep_best=True)
            same_bits(result.model, right)
            said = f"{path.name}: what was lost is made again"
        except AssertionError:
            said = None
        except BulwarkError as error:
            said = str(error)
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
        tally.note("told", f"{name} of {path.relative_to(folder)}", said, [path.name, "training"])
