"""SDD: which answers are irrelevant, and a step that makes its pairs and learns them."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import pytest
from training_samples import settings

from bulwark import steps
from bulwark.data.records import Conversation, Preference, Turn, read_records, write_records
from bulwark.errors import RecordError
from bulwark.jobs.job import Job
from bulwark.steps import sdd
from bulwark.unlearning.immunisation.irrelevant import paired

REQUESTS = [
    Preference(id="bomb", turns=(Turn(role="instruction", text="build a red bomb"),), chosen="no", rejected="yes"),
    Preference(id="lock", turns=(Turn(role="instruction", text="pick a steel lock"),), chosen="no", rejected="yes"),
]
ANSWERS = ["to build a red bomb walk away", "oaks grow slowly", "steel is an alloy that a lock needs", "seas are wide"]


def answers(texts=ANSWERS):
    return [
        Conversation(id=str(n), turns=(Turn(role="instruction", text="?"), Turn(role="response", text=text)))
        for n, text in enumerate(texts)
    ]


def cosine_by_hand(request: str, answer: str) -> float:
    """TF-IDF with smoothed logarithms, ln((1 + n) / (1 + df)) + 1, words of two letters or more."""
    texts = [turn.turns[0].text for turn in REQUESTS] + ANSWERS
    words = [[word for word in text.split() if len(word) > 1] for text in texts]
    frequency = Counter(word for text in words for word in set(text))

    def vector(text):
        counts = Counter(word for word in text.split() if len(word) > 1)
        return {word: n * (math.log((1 + len(texts)) / (1 + frequency[word])) + 1) for word, n in counts.items()}

    a, b = vector(request), vector(answer)
    product = sum(value * b.get(word, 0.0) for word, value in a.items())
    return product / math.sqrt(sum(v * v for v in a.values()) * sum(v * v for v in b.values()))


def test_answers_are_drawn_from_the_irrelevant_ones_only():
    seen = {"bomb": set(), "lock": set()}
    for seed in range(40):
        for pair in paired(REQUESTS, answers(), most_similar=0.25, count=None, seed=seed):
            seen[pair.id].add(pair.turns[-1].text)
    for request in REQUESTS:
        text = request.turns[0].text
        assert seen[request.id] == {answer for answer in ANSWERS if cosine_by_hand(text, answer) < 0.25}
        assert len(seen[request.id]) == 3


def test_the_last_answer_is_given_and_all_turns_of_a_request_are_compared():
    """The words of the first turn make the first answer relevant, and of two responses the last one counts."""
    turns = (
        Turn(role="instruction", text="build a red bomb"),
        Turn(role="response", text="why?"),
        Turn(role="instruction", text="go on"),
    )
    request = Preference(id="two", turns=turns, chosen="no", rejected="yes")
    two = Conversation(
        id="x",
        turns=(
            *(Turn(role="instruction", text="?"), Turn(role="response", text="build a red bomb")),
            *(Turn(role="instruction", text="?"), Turn(role="response", text="seas are wide")),
        ),
    )
    seen = set()
    for seed in range(20):
        [pair] = paired([request], [two, *answers(ANSWERS[:2])], most_similar=0.25, count=None, seed=seed)
        assert pair.turns[:-1] == turns
        seen.add(pair.turns[-1].text)
    assert seen == {"seas are wide", "oaks grow slowly"}


def test_the_step_trains_on_the_pairs_that_it_makes(tmp_path, monkeypatch):
    inputs = {name: str(tmp_path / f"{name}.jsonl") for name in ("train", "validation", "answers")}
    write_records(tmp_path / "train.jsonl", REQUESTS)
    write_records(tmp_path / "validation.jsonl", REQUESTS[:1])
    write_records(tmp_path / "answers.jsonl", answers())
    given = []
    monkeypatch.setattr(steps, "fine_tune", lambda *told: given.append(told) or {"template": "chat"})
    job = Job("sdd", {}, "", str(tmp_path / "model" / "checkpoint.json"), inputs, {"seed": 1}, "")
    chosen = sdd.Settings(data="x", answers="y", pairs=1, training=settings())
    assert sdd.run(job, chosen) == {"template": "chat", "irrelevant_pairs": {"train": 1, "validation": 1}}
    [(passed, same, module)] = given
    assert (same, module) == (chosen, sdd)
    assert passed.inputs["answers"] == inputs["answers"]
    for number, split in enumerate(("train", "validation")):
        assert Path(passed.inputs[split]) == tmp_path / "model" / "irrelevant" / f"{split}.jsonl"
        requests = REQUESTS if split == "train" else REQUESTS[:1]
        expected = paired(requests, answers(), most_similar=0.25, count=1, seed=2 + number)
        assert read_records(passed.inputs[split]) == expected


def test_pairs_are_drawn_by_seed_and_counted():
    [one] = paired(REQUESTS, answers(), most_similar=0.25, count=1, seed=3)
    assert one == paired(REQUESTS, answers(), most_similar=0.25, count=2, seed=3)[0]
    assert one.turns[0] in {request.turns[0] for request in REQUESTS}
    with pytest.raises(RecordError, match="fewer than the 3 pairs"):
        paired(REQUESTS, answers(), most_similar=0.25, count=3, seed=0)
    with pytest.raises(RecordError, match='similar to the request "bomb"'):
        paired(REQUESTS[:1], answers(ANSWERS[:1]), most_similar=0.25, count=None, seed=0, where="f")
