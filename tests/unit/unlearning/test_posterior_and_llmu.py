"""Min posterior, LLMU and refusal training, against each example by itself in float64."""

from __future__ import annotations

import math

import pytest
import torch
from tiny_causal_models import tiny_model
from unlearning_samples import (
    RETAIN,
    batch_of,
    course_of,
    forget_examples,
    learned,
    log_p_of,
    objective_of,
    pairs,
    with_parent,
)

from bulwark.data.records import Conversation, Passage, Turn
from bulwark.errors import BulwarkError
from bulwark.prompts.builder import IGNORED
from bulwark.unlearning.mismatch import check_conversations, drawn, foreign_answers, foreign_labels


def targets(model, prompts):
    """log p of each labelled token."""
    return [log_p_of(model, prompt)[place, token].item() for prompt in prompts for place, token in learned(prompt)]


def forget_loss(objective, model, prompts):
    with torch.no_grad():
        return objective.forget_loss(model, batch_of(prompts)).item()


@pytest.mark.parametrize("threshold", [-15.0, -4.0])
def test_min_posterior_counts_the_forgotten_tokens_but_gives_them_nothing(threshold, tmp_path):
    model = tiny_model()
    objective = objective_of("min_posterior", course_of(tmp_path, model), threshold=threshold)
    log_p = targets(model, forget_examples())
    expected = [-math.log1p(-math.exp(value)) if value >= threshold else 0.0 for value in log_p]
    assert (0.0 in expected) == (threshold == -4.0)
    assert forget_loss(objective, model, forget_examples()) == pytest.approx(sum(expected) / len(log_p), abs=1e-6)


def mismatches(model, course, step):
    """Of each forget example, the mean cross-entropy with the labels of the retain example that is drawn for it."""
    found = []
    for number, prompt in enumerate(forget_examples()):
        [other] = drawn(course.job.seed, step, number, 1, RETAIN)
        labels, log_p = course.examples[other].labels, log_p_of(model, prompt)
        reach = min(len(labels), len(prompt.ids))
        values = [-log_p[place - 1, labels[place]].item() for place in range(1, reach) if labels[place] != IGNORED]
        found.append(sum(values) / len(values))
    return found


@pytest.mark.parametrize(("ascent", "mismatch"), [(1.0, 1.0), (0.5, 2.0), (0.0, 1.0)])
def test_llmu_ascends_and_learns_labels_that_do_not_belong(ascent, mismatch, tmp_path):
    model = tiny_model()
    course = course_of(tmp_path, model, seed=4)
    objective = objective_of("llmu", course, ascent_weight=ascent, mismatch_weight=mismatch)
    objective.step = 3
    log_p, foreign = targets(model, forget_examples()), mismatches(model, course, step=3)
    expected = ascent * sum(log_p) / len(log_p) + mismatch * sum(foreign) / len(foreign)
    assert forget_loss(objective, model, forget_examples()) == pytest.approx(expected, abs=1e-5)


def test_the_labels_are_drawn_anew_at_each_step(tmp_path):
    course, batch = course_of(tmp_path), batch_of(forget_examples())
    lengths = [len(prompt.ids) for prompt in forget_examples()]
    one, other, again = (foreign_labels(batch, lengths, course.examples, 0, step)[1].tolist() for step in (0, 1, 0))
    assert one == again
    assert one != other


def test_llmu_keeps_the_distribution_of_its_start(tmp_path):
    course = with_parent(course_of(tmp_path))
    objective = objective_of("llmu", course, keep="divergence")
    with torch.no_grad():
        for parameter in course.model.parameters():
            parameter *= 1.1
        found = objective.retain_loss(course.model, batch_of(course.examples)).item()
    values = []
    for prompt in course.examples:
        now, then = log_p_of(course.model, prompt), log_p_of(tiny_model(), prompt)
        values += [-(then[place].exp() * now[place]).sum().item() for place, _ in learned(prompt)]
    assert found == pytest.approx(sum(values) / len(values), abs=1e-5)


def conversation(name, asked, answer):
    turns = (Turn(role="instruction", text=asked), Turn(role="response", text=answer))
    return Conversation(id=name, turns=turns)


class Spelled:
    """A builder of one token per letter."""

    def example(self, turns, loss_on):
        from bulwark.prompts.builder import Prompt

        asked, answer = ([3 + (ord(letter) - 97) for letter in turn.text] for turn in turns)
        return Prompt(asked + answer, [IGNORED] * len(asked) + answer, [0] * len(asked + answer), [], "", False)


def test_llmu_can_learn_answers_of_other_conversations(tmp_path):
    model = tiny_model()
    plain = course_of(tmp_path, model)
    retain = [conversation(str(n), "what", answer) for n, answer in enumerate(("yes", "no", "never"))]
    forget = [conversation(str(n), asked, "secret") for n, asked in enumerate(("who", "whose"))]
    course = type(plain)(**(vars(plain) | {"records": retain, "builder": Spelled()}))
    prompts = [Spelled().example(record.turns, "response") for record in forget]
    parts = list(foreign_answers(batch_of(prompts), forget, course, step=2, count=3))
    losses = []
    for number, record in enumerate(forget):
        for other in drawn(0, 2, number, 3, len(retain)):
            prompt = Spelled().example((record.turns[0], retain[other].turns[1]), "response")
            losses.append(-sum(targets(model, [prompt])) / len(learned(prompt)))
    objective = objective_of("llmu", plain, random_answers=3)
    objective.examples = type(objective.examples)(forget, prompts, 0, 0)
    objective.step = 2
    assert len(parts) == 3
    from bulwark.steps import llmu

    made = llmu.objective.__wrapped__ if hasattr(llmu.objective, "__wrapped__") else llmu.objective
    settings = llmu.Settings(
        data="r", forget="f", training=plain.training, mismatch="answers", random_answers=3, ascent_weight=0.0
    )
    with pytest.raises(BulwarkError, match="conversations"):
        made(plain_with_passages(plain), settings)
    course = type(plain)(**(vars(course) | {"job": course.job}))
    answering = spelled_objective(made, course, settings, forget, prompts)
    answering.step = 2
    assert forget_loss(answering, model, prompts) == pytest.approx(sum(losses) / len(losses), abs=1e-5)


def plain_with_passages(course):
    return type(course)(**(vars(course) | {"records": [Passage(id="p", text="x")]}))


def spelled_objective(made, course, settings, forget, prompts):
    class Given(type(course)):
        def examples_from(self, name):
            from bulwark.training.finetuning import Examples

            return Examples(forget, prompts, 0, 0)

    return made(Given(**vars(course)), settings)


def test_only_conversations_can_exchange_answers():
    check_conversations([conversation("0", "a", "b")], [])
    with pytest.raises(BulwarkError, match="mismatch"):
        check_conversations([conversation("0", "a", "b"), Passage(id="1", text="x")])


def test_refusal_training_learns_the_chosen_side(tmp_path):
    model, sides = tiny_model(), pairs()
    objective = objective_of("refusal_sft", course_of(tmp_path, model, sides=sides), side="chosen")
    assert objective.examples.prompts == sides["chosen"]
    log_p = targets(model, sides["chosen"])
    assert forget_loss(objective, model, sides["chosen"]) == pytest.approx(-sum(log_p) / len(log_p), abs=1e-5)
