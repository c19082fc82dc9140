"""Log-likelihoods: those of single passes, whatever the batches, and none computed twice."""

from __future__ import annotations

import pytest
import torch
from examinee_samples import V, tiny_aside
from tiny_causal_models import FAMILIES, tiny_model
from tiny_causal_models import V as TINY

from bulwark.errors import BulwarkError
from bulwark.models.embeddings import install
from bulwark.models.likelihoods import Continuation, log_likelihoods


@pytest.fixture(scope="module")
def model():
    return tiny_aside()


def requests_over(size: int) -> list[Continuation]:
    """Five contexts with roles; the first two continued in four ways by one token, the others by two or three."""
    draw = torch.Generator().manual_seed(1)

    def tokens(count: int) -> list[int]:
        return torch.randint(3, size, (count,), generator=draw).tolist()

    made = []
    for number in range(5):
        context = [token + size * (1 + place % 2) for place, token in enumerate(tokens(3 + 4 * number))]
        for option in range(4):
            targets = tokens(1 if number < 2 else 2 + option % 2)
            made.append(Continuation(f"{number}/{option}", context + targets[:-1], targets))
    return made


def by_hand(model, request: Continuation) -> tuple[float, bool]:
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([request.ids])).logits[0].float()
    predicting = logits[len(request.ids) - len(request.targets) :].log_softmax(-1)
    value = sum(float(row[token]) for row, token in zip(predicting, request.targets, strict=True))
    return value, predicting.argmax(-1).tolist() == request.targets


@pytest.mark.parametrize("budget", [1, 40, 10_000])
def test_values_are_those_of_single_passes(model, budget):
    asked = requests_over(V)
    found = log_likelihoods(model, asked, pad_id=0, token_budget=budget)
    for request, one in zip(asked, found, strict=True):
        value, greedy = by_hand(model, request)
        assert one.value == pytest.approx(value, abs=1e-4)
        assert one.greedy is greedy


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_gives_logits_at_chosen_places(family):
    model = tiny_model(family)
    install(model, {"method": "vanilla"})
    asked = requests_over(TINY)[4:12]
    found = log_likelihoods(model, asked, pad_id=0)
    assert [one.value for one in found] == pytest.approx([by_hand(model, one)[0] for one in asked], abs=1e-4)


def test_greedy_is_told(model):
    with torch.no_grad():
        best = int(model(input_ids=torch.tensor([[7 + V, 9]])).logits[0, -1].argmax())
    likely, other = (Continuation(str(token), [7 + V, 9], [token]) for token in (best, (best + 1) % V))
    assert [found.greedy for found in log_likelihoods(model, [likely, other], pad_id=0)] == [True, False]


def test_options_of_one_token_share_a_pass(model, monkeypatch):
    rows = []
    forward = model.forward
    monkeypatch.setattr(model, "forward", lambda **given: rows.append(len(given["input_ids"])) or forward(**given))
    log_likelihoods(model, requests_over(V)[:8], pad_id=0)
    assert sum(rows) == 2


def test_longer_options_read_their_context_once(model):
    seen = []
    handle = model.model.register_forward_pre_hook(
        lambda _, given, named: seen.append(named["input_ids"].shape), with_kwargs=True
    )
    asked = requests_over(V)[8:]  # three contexts of 11, 15 and 19 tokens, four options of two or three
    log_likelihoods(model, asked, pad_id=0)
    handle.remove()
    assert [tuple(shape) for shape in seen] == [(3, 19), (3, 1), (3, 2), (3, 1), (3, 2)]


def test_options_of_different_numbers_and_lengths_after_one_context(model):
    asked = [request for number, request in enumerate(requests_over(V)[8:]) if number not in (1, 2, 3, 10)]
    short = asked[-1]
    asked.append(Continuation("one token", short.ids[: 1 - len(short.targets)], short.targets[:1]))
    found = log_likelihoods(model, asked, pad_id=0)
    for request, one in zip(asked, found, strict=True):
        value, greedy = by_hand(model, request)
        assert one.value == pytest.approx(value, abs=1e-4)
        assert one.greedy is greedy


def test_what_is_there_is_not_computed_again(model, tmp_path, monkeypatch):
    asked, partial = requests_over(V), tmp_path / "answers.partial"
    first = log_likelihoods(model, asked[:9], pad_id=0, partial=partial, fingerprint="one")
    seen = []
    forward = model.forward
    monkeypatch.setattr(model, "forward", lambda **given: seen.append(given["input_ids"].shape) or forward(**given))
    whole = log_likelihoods(model, asked, pad_id=0, partial=partial, fingerprint="one", token_budget=1)
    assert whole[:9] == first
    assert len(seen) == len({tuple(request.ids) for request in asked[9:]})
    seen.clear()
    log_likelihoods(model, asked, pad_id=0, partial=partial, fingerprint="another", token_budget=1)
    assert len(seen) == len({tuple(request.ids) for request in asked})


def test_nan_and_doubled_keys_are_refused(model):
    one = requests_over(V)[0]
    with pytest.raises(BulwarkError, match="same key"):
        log_likelihoods(model, [one, one], pad_id=0)
    broken = tiny_aside()
    torch.nn.init.constant_(broken.get_output_embeddings().weight, torch.nan)
    with pytest.raises(BulwarkError, match="not numbers"):
        log_likelihoods(broken, [one], pad_id=0)
