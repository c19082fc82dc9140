"""The search: resumed exactly from its journal."""

from __future__ import annotations

import json
import logging
import math
import os
import random
import signal
from pathlib import Path
from typing import Any

import pytest
from abliteration_samples import attack_settings
from interrupt_samples import caught

from bulwark.abliteration.search import pareto
from bulwark.abliteration.search.objectives import Measures
from bulwark.abliteration.search.search import Search
from bulwark.abliteration.search.trials import Parameters, TrialResult
from bulwark.abliteration.settings import AttackSettings
from bulwark.errors import CheckpointError
from bulwark.interrupts import Interrupted

LAYERS, TRIALS, STARTUP = 6, 12, 5
BATCHES = [1, 4]


class Killed(Exception):
    pass


def settings_of(batch: int = 1, trials: int = TRIALS, **search: Any) -> AttackSettings:
    given = {"trials": trials, "startup_trials": STARTUP, "ei_candidates": 6, "trials_per_batch": batch}
    return attack_settings(
        search=given | search, directions={"methods": ["mean", "median"]}, space={"min_weight_distance": 0.6}
    )


def found_of(parameters: Parameters, kl: float | None = None) -> TrialResult:
    """What a made-up model does: stronger edits refuse less and diverge more."""
    strengths = [sum(kernel.profile(LAYERS)) for kernel in parameters.kernels.values()]
    place = parameters.choices["attention"].index or 0.0
    refusals = max(0, min(20, round(20 - 2.5 * strengths[0] - strengths[1] + abs(place - 3))))
    kl = 0.01 * strengths[0] ** 2 + 0.02 * strengths[1] ** 2 if kl is None else kl
    verdicts = [True] * refusals + [False] * (20 - refusals)
    return TrialResult(Measures(kl, refusals, 20, None, 20), False, False, verdicts, 1.0, 7)


def score(found: TrialResult) -> tuple[float, float]:
    return found.measures.kl, found.measures.refusal_rate


class Examine:
    """Measures; dies when it is given a trial of the number `dies_at` (counted from the first one given)."""

    def __init__(self, dies_at: int | None = None) -> None:
        self.dies_at, self.given, self.known = dies_at, 0, []

    def __call__(self, proposed: list[Parameters], known: list[tuple[float, float]]) -> list[TrialResult]:
        self.given += len(proposed)
        if self.dies_at is not None and self.given > self.dies_at:
            raise Killed
        self.known.append(list(known))
        return [found_of(one) for one in proposed]


def opened(folder: Path, settings: AttackSettings, fingerprint: str = "one", seed: int = 3) -> Search:
    return Search(folder / "study.journal", settings, LAYERS, seed, fingerprint)


def vectors(search: Search) -> list[dict[str, Any]]:
    return [trial["parameters"] for trial in search.records()]


def front(search: Search) -> list[int]:
    return pareto.front([tuple(trial["objectives"]) for trial in search.records()])


@pytest.fixture(scope="module", params=BATCHES)
def whole(request, tmp_path_factory) -> tuple[int, Path, Search]:
    """A search that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    search = opened(folder, settings_of(request.param))
    search.run(Examine(), score)
    return request.param, folder, search


def test_every_trial_is_measured_once_and_no_two_are_alike(whole):
    _, _, search = whole
    found = search.records()
    assert [trial["number"] for trial in found] == list(range(TRIALS))
    assert len({json.dumps(trial["parameters"], sort_keys=True) for trial in found}) == TRIALS
    assert len(found[0]["parameters"]) == 2 + 1 + 4 * 2


def test_the_same_seed_gives_the_same_search_and_another_seed_another(whole, tmp_path):
    batch, _, search = whole
    again, other = opened(tmp_path / "a", settings_of(batch)), opened(tmp_path / "b", settings_of(batch), seed=4)
    again.run(Examine(), score)
    other.run(Examine(), score)
    assert again.records() == search.records()
    assert all(one != two for one, two in zip(vectors(other), vectors(search), strict=True))


@pytest.mark.parametrize("dies_at", range(TRIALS))
def test_a_search_killed_at_a_trial_goes_on_as_if_nothing_had_been(whole, tmp_path, dies_at):
    batch, _, search = whole
    with pytest.raises(Killed):
        opened(tmp_path, settings_of(batch)).run(Examine(dies_at), score)
    resumed = opened(tmp_path, settings_of(batch))
    rest = Examine()
    resumed.run(rest, score)
    assert rest.given == TRIALS - dies_at // batch * batch
    assert resumed.records() == search.records()
    assert front(resumed) == front(search)


def test_a_search_told_to_end_says_what_is_kept_and_goes_on(whole, tmp_path, caplog):
    batch, _, search = whole

    class Told(Examine):
        def __call__(self, *arguments):
            if self.given == 4:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().__call__(*arguments)

    with caught(), pytest.raises(Interrupted):
        opened(tmp_path, settings_of(batch)).run(Told(), score)
    kept = 5 if batch == 1 else 8
    assert any(f"{kept} of {TRIALS} trials are kept in {tmp_path}" in line for line in caplog.messages)
    resumed, rest = opened(tmp_path, settings_of(batch)), Examine()
    resumed.run(rest, score)
    assert rest.given == TRIALS - kept
    assert resumed.records() == search.records()


def test_a_search_killed_at_every_trial_in_turn_is_the_whole_one(whole, tmp_path):
    batch, _, search = whole
    for _ in range(TRIALS // batch - 1):
        with pytest.raises(Killed):
            opened(tmp_path, settings_of(batch)).run(Examine(batch), score)
    resumed = opened(tmp_path, settings_of(batch))
    resumed.run(Examine(batch), score)  # one batch is left to measure
    assert resumed.records() == search.records()


@pytest.mark.parametrize("part", range(24))
def test_a_journal_cut_at_any_byte_goes_on_as_if_nothing_had_been(whole, tmp_path, part):
    """In the middle of a line, between the parameters of a trial, between the trials of a batch."""
    batch, folder, search = whole
    content = (folder / "study.journal").read_bytes()
    at = len(content) * part // 24 + 7 * part
    (tmp_path / "study.journal").write_bytes(content[:at])
    resumed = opened(tmp_path, settings_of(batch))
    resumed.run(Examine(), score)
    assert vectors(resumed) == vectors(search)
    assert resumed.records() == search.records()


@pytest.mark.parametrize("batch", BATCHES)
def test_wherever_the_start_is_cut_no_start_up_trial_repeats_another(tmp_path, batch):
    """HERETIC's and ICONOCLAST's defect (A.9), after every single line of the journal's first trials."""
    settings = settings_of(batch, trials=4)
    opened(tmp_path / "whole", settings).run(Examine(), score)
    lines = (tmp_path / "whole" / "study.journal").read_bytes().splitlines(keepends=True)
    for count in range(0, len(lines), 3):
        folder = tmp_path / str(count)
        folder.mkdir()
        (folder / "study.journal").write_bytes(b"".join(lines[:count]))
        resumed = opened(folder, settings)
        resumed.run(Examine(), score)
        values = [trial["parameters"]["attention.max_weight_position"] for trial in resumed.records()]
        assert len(set(values)) == 4, count


def test_more_trials_go_on_from_those_that_are_there(whole, tmp_path):
    batch, folder, search = whole
    (tmp_path / "study.journal").write_bytes((folder / "study.journal").read_bytes())
    more, rest = opened(tmp_path, settings_of(batch, trials=TRIALS + 8)), Examine()
    more.run(rest, score)
    assert rest.given == 8
    assert more.records()[:TRIALS] == search.records()
    assert len(more.records()) == TRIALS + 8


def test_a_finished_search_measures_nothing_more(whole):
    batch, folder, search = whole
    again = opened(folder, settings_of(batch))
    again.run(Examine(0), score)
    assert again.records() == search.records()


@pytest.mark.parametrize("seed", range(12))
def test_no_change_of_a_journal_is_silent(whole, tmp_path, seed):
    """A flipped bit, a line that was taken out, or two that were exchanged; the line is named."""
    content = (whole[1] / "study.journal").read_bytes()
    drawn = random.Random(seed)
    lines = content.splitlines(keepends=True)
    number = drawn.randrange(len(lines) - 1)
    if seed % 3 == 0:
        at = drawn.randrange(len(content) - 1)
        number = content[:at].count(b"\n")
        content = content[:at] + bytes([content[at] ^ (1 << drawn.randrange(8))]) + content[at + 1 :]
    elif seed % 3 == 1:
        content = b"".join(lines[:number] + lines[number + 1 :])
    else:
        lines[number], lines[number + 1] = lines[number + 1], lines[number]
        content = b"".join(lines)
    (tmp_path / "study.journal").write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"study\.journal, line {number + 1}: damaged.*sed -i .*or remove"):
        opened(tmp_path, settings_of(whole[0]))


def test_a_journal_that_another_process_writes_to_is_told(tmp_path):
    one = opened(tmp_path, settings_of())
    opened(tmp_path, settings_of()).study.set_user_attr("a", 1)
    with pytest.raises(CheckpointError, match="another process writes into it"):
        one.study.set_user_attr("a", 1)


def test_a_journal_of_other_settings_is_put_aside_and_kept(tmp_path, caplog):
    first = opened(tmp_path, settings_of(trials=3))
    first.run(Examine(), score)
    content = (tmp_path / "study.journal").read_bytes()
    with caplog.at_level(logging.WARNING):
        second = opened(tmp_path, settings_of(trials=2), fingerprint="two")
    assert "under other settings" in caplog.text
    assert (tmp_path / "study.journal.other").read_bytes().startswith(content)
    assert second.records() == []
    second.run(Examine(), score)
    assert len(second.records()) == 2


def test_a_second_journal_of_other_settings_does_not_replace_the_first(tmp_path):
    for fingerprint in ("one", "two", "three"):
        opened(tmp_path, settings_of(trials=2), fingerprint=fingerprint).run(Examine(), score)
    kept = [path for path in tmp_path.iterdir() if path.name != "study.journal" and "lock" not in path.name]
    assert len(kept) == 2


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("dies_at", [None, 0, 1, 2])
def test_parameters_to_try_first_are_tried_first(tmp_path, batch, dies_at):
    first = (
        {"direction_scope": "global", "direction_index": 3.0, "attention.max_weight": 1.25},
        {"direction_scope": "per layer", "attention.max_weight": 0.75, "mlp.max_weight": 0.0},
    )
    settings = settings_of(batch, trials=6, first=first)
    if dies_at is not None:
        with pytest.raises(Killed):
            opened(tmp_path, settings).run(Examine(dies_at), score)
    search = opened(tmp_path, settings)
    search.run(Examine(), score)
    found = search.records()
    assert len(found) == 6
    for trial, given in zip(found, first, strict=False):
        assert trial["parameters"].items() >= given.items()
    assert search.parameters_of(0).choices["mlp"].index == 3.0
    assert search.parameters_of(1).choices["mlp"].index is None


def test_all_ranges_are_kept_and_the_least_weight_is_a_share_of_the_greatest(whole):
    _, _, search = whole
    last = LAYERS - 1
    for trial in search.records():
        given, made = trial["parameters"], search.parameters_of(trial["number"])
        assert given["direction_scope"] in ("global", "per layer")
        assert given["direction_method"] in ("mean", "median")
        assert 0.4 * last <= given["direction_index"] <= 0.9 * last
        assert made.choices["attention"] == made.choices["mlp"]
        assert (made.choices["mlp"].index is None) == (given["direction_scope"] == "per layer")
        for name, kernel in made.kernels.items():
            low = {"attention": 0.5, "mlp": 0.0}[name]
            assert low <= kernel.max_weight <= 1.5
            assert kernel.max_weight == max(0.0, given[f"{name}.max_weight"])
            assert kernel.min_weight == pytest.approx(given[f"{name}.min_weight"] * kernel.max_weight)
            assert 0 <= kernel.max_weight_position <= last
            assert 1 <= kernel.min_weight_distance <= 0.6 * last
            assert trial["profile"][name] == kernel.profile(LAYERS)


def test_components_can_have_directions_of_their_own(tmp_path):
    settings = attack_settings(
        search={"trials": 3, "startup_trials": 3},
        space={"per_component": True},
        directions={"methods": ["mean", "median", "variance", "hybrid"]},
    )
    search = Search(tmp_path / "study.journal", settings, LAYERS, 0, "x")
    search.run(Examine(), score)
    assert {len(trial["parameters"]) for trial in search.records()} == {16}
    made = search.parameters_of(0)
    assert made.choices["attention"] != made.choices["mlp"]


@pytest.mark.parametrize("batch", BATCHES)
def test_a_trial_knows_whole_trials_before_its_batch_alone(tmp_path, batch):
    examine = Examine()
    search = opened(tmp_path, settings_of(batch))
    search.run(examine, score)
    points = [(trial["refusal_rate"], trial["kl"]) for trial in search.records()]
    assert examine.known == [points[:start] for start in range(0, TRIALS, batch)]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_trial_whose_kl_is_no_number_is_bad_and_does_not_end_the_search(tmp_path, value):
    class Broken(Examine):
        def __call__(self, proposed, known):
            self.given += len(proposed)
            broken = self.given == 3
            gated = TrialResult(Measures(value, 20, 20, None, 20), True, False, [None] * 20, 1.0, 0)
            return [gated if broken else found_of(one) for one in proposed]

    search = opened(tmp_path, settings_of())
    search.run(Broken(), score)
    found = search.records()
    assert len(found) == TRIALS
    assert found[2]["kl"] is None
    assert found[2]["objectives"] == [1e6, 1.0]
    assert 2 not in front(search)
    json.dumps(found, allow_nan=False)
    resumed = opened(tmp_path, settings_of(trials=TRIALS + 1))
    resumed.run(Examine(), score)
    assert len(resumed.records()) == TRIALS + 1


def test_no_batch_is_begun_after_the_time_is_over(tmp_path):
    """A trial takes a second of the made-up clock; a resumed search counts what was taken before."""
    search = opened(tmp_path, settings_of(seconds=4.5))
    search.run(Examine(), score)
    assert len(search.records()) == 5
    again = opened(tmp_path, settings_of(seconds=4.5))
    again.run(Examine(0), score)
    assert len(again.records()) == 5
