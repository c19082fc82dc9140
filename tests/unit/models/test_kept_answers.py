"""Answers that are kept on the way: none is lost or made twice, however a run ends."""

from __future__ import annotations

import functools
import json
import logging
import os
import signal

import pytest
from generation_samples import GREEDY, SAMPLED, Counted, answers, sample_builder, sample_model, sample_prompts
from interrupt_samples import caught

from bulwark import interrupts
from bulwark.interrupts import Interrupted
from bulwark.models.decoding import Decoding
from bulwark.prompts.builder import Prompt


@pytest.fixture(scope="module")
def model():
    return sample_model()


@pytest.fixture(scope="module")
def builder():
    return sample_builder()


@pytest.fixture(scope="module")
def prompts(builder) -> list[tuple[str, Prompt]]:
    return sample_prompts(builder)


@pytest.fixture
def answer(model, builder, prompts):
    return functools.partial(answers, model=model, builder=builder, prompts=prompts)


def test_an_interrupted_run_continues_where_it_stopped(answer, model, tmp_path):
    partial = tmp_path / "answers.jsonl.partial"
    whole = answer()

    class Killed(Counted):
        def __call__(self, input_ids, **options):
            if len(self.rows) == 3 and input_ids.shape[1] > 1:
                raise KeyboardInterrupt
            return super().__call__(input_ids, **options)

    killed = Killed(model)
    with pytest.raises(KeyboardInterrupt):
        answer(model=killed, token_budget=150, partial=partial, fingerprint="x")
    done = sum(killed.rows)
    assert len(partial.read_text().splitlines()) == 1 + done
    with partial.open("ab") as file:
        file.write(b'{"id": "r4", "resp')  # cut off in the middle of a line
    again = Counted(model)
    assert answer(model=again, partial=partial, fingerprint="x") == whole
    assert sum(again.rows) == len(whole) - done
    finished = Counted(model)
    assert answer(model=finished, partial=partial, fingerprint="x") == whole
    assert finished.rows == []
    rows = [json.loads(line) for line in partial.read_text().splitlines()]
    assert sorted(row["id"] for row in rows[1:]) == sorted(one.id for one in whole)


class Told(Counted):
    """Told to end by a signal in a pass over its `batch`-th batch."""

    def __init__(self, model, number, batch, step):
        super().__init__(model)
        self.number, self.batch, self.step, self.passes_after = number, batch, step, 0

    def __call__(self, input_ids, **options):
        found = super().__call__(input_ids, **options)
        if len(self.rows) == self.batch:
            if self.step == 0:
                os.kill(os.getpid(), self.number)
            self.passes_after += self.step < 0
            self.step -= 1
        return found


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_told_to_end_it_keeps_the_batches_before_and_says_so(answer, model, tmp_path, number, caplog):
    partial = tmp_path / "answers.jsonl.partial"
    whole = answer(stop_ids=[])
    told = Told(model, number, batch=3, step=4)
    with caught(), pytest.raises(Interrupted) as ended:
        answer(model=told, stop_ids=[], token_budget=150, partial=partial, fingerprint="x")
    assert ended.value.code == 128 + number
    assert told.passes_after == 0  # it does not wait for the end of the batch
    done = sum(told.rows[:2])
    assert f"{done} of {len(whole)} answers are kept in {partial}; give the same command again" in caplog.messages
    again = Counted(model)
    assert answer(model=again, stop_ids=[], partial=partial, fingerprint="x") == whole
    assert sum(again.rows) == len(whole) - done


@pytest.mark.parametrize("decoding", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("step", [0, 1, 4])
def test_told_to_end_it_keeps_what_is_finished_of_a_batch(answer, model, tmp_path, step, decoding):
    partial = tmp_path / "answers.jsonl.partial"
    often = {"stop_ids": range(0, 500, 5), "partial": partial, "fingerprint": "x"}  # rows end early, and not together
    whole = answer(decoding, stop_ids=often["stop_ids"])
    done = {one.id for one in whole if one.tokens <= step + 1}
    assert 0 < len(done) < len(whole)
    told = Told(model, signal.SIGTERM, batch=1, step=step)
    with caught(), pytest.raises(Interrupted):
        answer(decoding, model=told, **often)
    assert told.rows == [len(whole)]
    assert {json.loads(line)["id"] for line in partial.read_text().splitlines()[1:]} == done
    again = Counted(model)
    assert answer(decoding, model=again, **often) == whole
    assert sum(again.rows) == len(whole) - len(done)


def test_told_to_end_at_the_last_token_nothing_is_lost(answer, model, tmp_path):
    told = Told(model, signal.SIGTERM, batch=1, step=GREEDY.max_new_tokens - 1)
    with caught():
        found = answer(model=told, stop_ids=[], partial=tmp_path / "a.partial")
    assert found == answer(stop_ids=[])


def test_within_a_work_that_is_seen_through_answers_are_whole(answer, model):
    told = Told(model, signal.SIGTERM, batch=1, step=1)
    with caught(), interrupts.resumable(None):
        assert answer(model=told) == answer()


@pytest.mark.parametrize("line", [0, 1, 7, 13])
def test_from_a_damaged_line_on_answers_are_generated_again(answer, tmp_path, line, caplog):
    """Even where it is a whole answer still."""
    partial = tmp_path / "a.partial"
    whole = answer(partial=partial, fingerprint="x")
    lines = partial.read_text().splitlines(keepends=True)
    at = lines[line].index('"response":"' if line else '"fingerprint":"') + 17
    lines[line] = lines[line][:at] + ("b" if lines[line][at] != "b" else "c") + lines[line][at + 1 :]
    partial.write_text("".join(lines))
    with caplog.at_level(logging.WARNING, logger="bulwark"):
        assert answer(partial=partial, fingerprint="x") == whole
    assert f"{partial}, line {line + 1}: damaged" in caplog.text
    assert len(partial.read_text().splitlines()) == 14


@pytest.mark.parametrize(
    "other",
    [{"fingerprint": "y"}, {"seed": 3}, {"stop_ids": [5]}, {"decoding": Decoding(max_new_tokens=3)}],
    ids=lambda other: next(iter(other)),
)
def test_answers_made_under_other_settings_are_discarded(answer, model, tmp_path, other, caplog):
    partial = tmp_path / "a.partial"
    answer(partial=partial, fingerprint="x")
    counted = Counted(model)
    with caplog.at_level(logging.WARNING, logger="bulwark"):
        answer(model=counted, partial=partial, **{"fingerprint": "x", **other})
    assert sum(counted.rows) == 13
    assert "discarded" in caplog.text
    assert len(partial.read_text().splitlines()) == 14


def test_a_changed_prompt_is_answered_anew(answer, model, prompts, tmp_path):
    partial = tmp_path / "a.partial"
    answer(partial=partial)
    changed = [(prompts[0][0], prompts[1][1]), *prompts[1:]]
    counted = Counted(model)
    found = answer(model=counted, prompts=changed, partial=partial)
    assert counted.rows == [1]
    assert found[0].response == answer(prompts=changed)[0].response
