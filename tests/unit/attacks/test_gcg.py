"""GCG: its gradient, its choice of substitutions, and that the texts that it tries give the tokens it measures."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from examinee_samples import V, tiny_aside
from tiny_tokenizers import tiny_tokenizer
from torch import nn

from bulwark.attacks.gcg import Gcg
from bulwark.attacks.settings import GcgSettings
from bulwark.attacks.suffixes import Case, Written, allowed_tokens
from bulwark.data.records import Turn
from bulwark.errors import ConfigurationError
from bulwark.models.embeddings import install
from bulwark.models.open import LanguageModel
from bulwark.prompts.builder import PromptBuilder

SUFFIX = "! ! !"
TURNS = [Turn(role="instruction", text="Name a tree."), Turn(role="data", text="The oak grows.")]
OTHER = [Turn(role="instruction", text="Translate the sentence into French."), Turn(role="data", text="A vote.")]
TARGET = "The vote"


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer("chatml")


@pytest.fixture(scope="module")
def builder(tokenizer):
    return PromptBuilder(tokenizer, "chat", V)


@pytest.fixture(scope="module")
def model():
    return tiny_aside()


def case_of(builder, turns=TURNS, number=1, place=0) -> Case:
    return Case([Written(builder, turns, TARGET, SUFFIX, number)], place)


def attacker(model, tokenizer, seed=0, token_budget=None, together=None, **changes) -> Gcg:
    settings = GcgSettings(**({"search_width": 24, "top_k": 16, "suffix": SUFFIX} | changes))
    allowed = allowed_tokens(tokenizer, V)
    return Gcg(model, settings, allowed, pad_id=0, seed=seed, token_budget=token_budget, together=together)


def by_hand(model, ids: list[int], target: int, move=None) -> float:
    """-log p of the target's tokens over their number, one row, from embedded vectors; `move` changes these."""
    embedded = model.get_input_embeddings()(torch.tensor([ids]))
    if move is not None:
        place, vector = move
        embedded[0, place] += vector
    logits = model(inputs_embeds=embedded).logits[0]
    total = 0.0
    for place in range(len(ids) - target, len(ids)):
        total -= float(logits.detach()[place - 1].double().log_softmax(-1)[ids[place] % V])
    return total / target


def wide_norms(model: nn.Module) -> None:
    """Norms in float64, in place of Llama's, which compute in float32 whatever they are given."""
    for parent in model.modules():
        for name, part in list(parent.named_children()):
            if type(part).__name__ == "LlamaRMSNorm":
                norm = nn.RMSNorm(part.weight.shape[0], eps=part.variance_epsilon, dtype=torch.float64)
                norm.weight = part.weight
                setattr(parent, name, norm)


@pytest.mark.parametrize("method", ["vanilla", "ise", "aside"])
@pytest.mark.parametrize("number", [0, 1])
@torch.no_grad()
def test_the_gradient_is_the_slope_along_one_hot_vectors(method, number, builder, tokenizer):
    model = tiny_aside()
    install(model, {"method": method})
    model.double()
    wide_norms(model)
    case = case_of(builder, number=number)
    gcg = attacker(model, tokenizer)
    (loss,), (gradient,) = gcg.gradients([case])
    row = case.rows[0]
    ids = row.filled(case.tokens, V)
    assert loss == pytest.approx(by_hand(model, ids, row.target), abs=1e-12)
    role = {0: 1, 1: 2}[number]
    step = 1e-5
    for n, place in enumerate(row.places):
        for column in (0, 7, 40):
            token = int(gcg.candidates[column])
            vector = model.get_input_embeddings()(torch.tensor([token + role * V]))[0]
            up, down = (by_hand(model, ids, row.target, (place, s * vector)) for s in (step, -step))
            assert float(gradient[n, column]) == pytest.approx((up - down) / (2 * step), abs=1e-7, rel=1e-6)


@torch.no_grad()
def test_with_a_search_that_covers_all_it_finds_the_best_substitution(model, builder, tokenizer):
    gcg = attacker(model, tokenizer, search_width=10_000, top_k=10_000)
    case = case_of(builder)
    before, row = case.tokens, case.rows[0]
    least, best = float("inf"), None
    for place in range(len(before)):
        for token in gcg.candidates.tolist():
            tokens = [*before[:place], token, *before[place + 1 :]]
            if tokens == before or not case.holds(tokens):
                continue
            loss = by_hand(model, row.filled(tokens, V), row.target)
            if loss < least:
                least, best = loss, tokens
    gcg.step([case])
    assert case.tokens == best
    assert case.loss == pytest.approx(least, abs=1e-5)
    assert 0 < case.refused < case.drawn < len(before) * len(gcg.candidates)


def test_the_tokens_that_are_tried_have_the_largest_negative_gradient(model, builder, tokenizer):
    gcg = attacker(model, tokenizer, search_width=10_000, top_k=5)
    case = case_of(builder)
    _, (gradient,) = gcg.gradients([case])
    proposals = gcg._proposals(case, gradient)
    by_place: dict[int, set[int]] = {}
    for tokens in proposals:
        ((place, token),) = [
            (n, new) for n, (old, new) in enumerate(zip(case.tokens, tokens, strict=True)) if old != new
        ]
        by_place.setdefault(place, set()).add(token)
    for place, tried in by_place.items():
        ordered = [token for _, token in sorted(zip(gradient[place].tolist(), gcg.candidates.tolist(), strict=True))]
        assert tried <= {token for token in ordered if token != case.tokens[place]} & set(ordered[:6])
    assert sum(map(len, by_place.values())) == len(proposals) == case.drawn - case.refused
    assert case.drawn == 5 * len(case.tokens)


def test_every_iteration_draws_anew(model, builder, tokenizer):
    gcg = attacker(model, tokenizer)
    case = case_of(builder)
    _, (gradient,) = gcg.gradients([case])
    first = gcg._proposals(case, gradient)
    case.steps += 1
    assert gcg._proposals(case, gradient) != first
    assert len(first) == len({tuple(tokens) for tokens in first}) == 24


def losses_over(gcg, case, steps=8):
    losses = gcg.loss_of([case])
    for _ in range(steps):
        gcg.step([case])
        losses.append(gcg.loss_of([case])[0])
        assert case.loss == pytest.approx(losses[-1], abs=1e-5)
    return losses


def test_the_loss_falls_and_with_keep_best_it_never_rises(model, builder, tokenizer):
    kept, free = case_of(builder), case_of(builder)
    losses = losses_over(attacker(model, tokenizer, search_width=1, keep_best=True), kept)
    assert all(later <= earlier + 1e-6 for earlier, later in pairwise(losses))
    loose = losses_over(attacker(model, tokenizer, search_width=1), free)
    assert any(later > earlier for earlier, later in pairwise(loose))
    assert free.best_loss == pytest.approx(min(loose), abs=1e-5)
    searched = losses_over(attacker(model, tokenizer), case_of(builder))
    assert searched[-1] < searched[0] - 0.5


@pytest.mark.parametrize("number", [0, 1])
def test_a_text_gives_the_tokens_that_were_measured_in_their_role(number, model, builder, tokenizer):
    case = case_of(builder, number=number)
    attacker(model, tokenizer).run([case], 4)
    written, row = case.written[0], case.rows[0]
    said = [*written.turns(case.tokens), Turn(role="response", text=TARGET)]
    ids = builder.example(said).ids
    assert ids[: len(row.ids)] == row.filled(case.tokens, V)
    assert {ids[place] // V for place in row.places} == {number + 1}
    assert said[1 - number].text == TURNS[1 - number].text
    assert said[number].text.startswith(TURNS[number].text)
    assert tokenizer.decode(case.tokens) in said[number].text
    assert len(case.tokens) == 6  # a space and a mark each


def test_the_role_decides_which_vectors_are_tried(tokenizer, builder):
    """Under ASIDE an instruction's token is embedded plainly and a data token turned, so the gradients differ."""
    gcg = attacker(tiny_aside(), tokenizer)
    case = case_of(builder)
    row = case.rows[0]
    as_data = gcg.gradients([case])[1][0]
    assert {row.ids[place] // V for place in row.places} == {2}
    torch.testing.assert_close(as_data, gradient_by_hand(gcg, case, role=2), atol=1e-5, rtol=1e-4)
    assert not torch.allclose(as_data, gradient_by_hand(gcg, case, role=1), atol=1e-3)


def gradient_by_hand(gcg: Gcg, case: Case, role: int) -> torch.Tensor:
    """The loss's slope along each candidate's vector as a token of `role`."""
    row = case.rows[0]
    embedded = gcg.embedding(torch.tensor([row.filled(case.tokens, V)])).detach().requires_grad_()
    logits = gcg.model(inputs_embeds=embedded).logits[0, -row.target - 1 : -1]
    wanted = torch.tensor([token % V for token in row.ids[-row.target :]])
    nn.functional.cross_entropy(logits, wanted).backward()
    return (embedded.grad[0, list(row.places)] @ gcg.embedding(gcg.candidates + role * V).T).detach()


def test_draws_depend_on_seed_case_and_iteration_only(model, builder, tokenizer):
    def outcome(places, steps=3, **options):
        cases = [case_of(builder, turns, place=place) for place, turns in places]
        attacker(model, tokenizer, **options).run(cases, steps)
        return [case.tokens for case in cases]

    both = outcome([(0, TURNS), (1, OTHER)])
    assert both == outcome([(0, TURNS), (1, OTHER)])
    assert both == outcome([(0, TURNS)]) + outcome([(1, OTHER)])
    assert both == outcome([(0, TURNS), (1, OTHER)], token_budget=60)
    assert outcome([(0, TURNS)], seed=1) != both[:1]
    assert outcome([(3, TURNS)]) != both[:1]


def test_a_restored_case_goes_on_as_if_nothing_had_happened(model, builder, tokenizer):
    whole, first, second = (case_of(builder) for _ in range(3))
    attacker(model, tokenizer).run([whole], 4)
    attacker(model, tokenizer).run([first], 2)
    second.restore(first.state())
    attacker(model, tokenizer).run([second], 2)
    assert second.state() == whole.state()
    assert whole.steps == 4
    untouched = case_of(builder)
    untouched.restore(case_of(builder).state())
    assert untouched.best_loss == float("inf")


def test_prompts_that_share_tokens_have_their_mean_loss(model, builder, tokenizer):
    shared = Case([Written(builder, turns, TARGET, SUFFIX) for turns in (TURNS, OTHER)])
    alone = [case_of(builder), case_of(builder, OTHER)]
    gcg = attacker(model, tokenizer)
    (loss,), (gradient,) = gcg.gradients([shared])
    losses, gradients = gcg.gradients(alone)
    assert loss == pytest.approx(sum(losses) / 2, abs=1e-6)
    torch.testing.assert_close(gradient, (gradients[0] + gradients[1]) / 2)
    gcg.step([shared])
    assert shared.loss == pytest.approx(sum(gcg.loss_of([Case([w], tokens=shared.tokens) for w in shared.written])) / 2)


def test_losses_are_those_of_single_rows_whatever_the_batches(model, builder, tokenizer):
    rows = [
        (row.filled(case.tokens, V), row.target)
        for case in (case_of(builder), case_of(builder, OTHER))
        for row in case.rows
    ]
    expected = [by_hand(model, *row) for row in rows]
    for budget in (1, 10_000):
        assert attacker(model, tokenizer, token_budget=budget).losses(rows).tolist() == pytest.approx(
            expected, abs=1e-5
        )


def test_all_processes_make_as_many_passes_as_the_busiest(model, builder, tokenizer):
    calls = []
    handle = model.register_forward_hook(lambda *_: calls.append(1))
    gcg = attacker(model, tokenizer, token_budget=60, together=lambda own: own + 2)
    case, alone = case_of(builder), case_of(builder)
    gcg.step([case])
    with_others = len(calls)
    calls.clear()
    attacker(model, tokenizer, token_budget=60).step([alone])
    assert with_others == len(calls) + 4  # two more for the gradient, two for the losses
    assert case.tokens == alone.tokens
    calls.clear()
    gcg.step([])
    assert len(calls) == 4
    handle.remove()


def test_an_attack_on_an_open_model(model, tokenizer, builder):
    opened = LanguageModel(model, tokenizer, "chat", builder)
    settings = GcgSettings(steps=2, search_width=8, top_k=4, suffix=SUFFIX)
    one, two = Gcg.of(opened, settings).attack(opened, [(TURNS, TARGET), (OTHER, TARGET)])
    assert one.steps == two.steps == 2
    assert one.best_loss < Gcg.of(opened, settings).loss_of([case_of(builder)])[0]


def test_only_printable_tokens_are_written(tokenizer):
    allowed = set(allowed_tokens(tokenizer, V).tolist())
    every = set(allowed_tokens(tokenizer, V, allow_non_ascii=True).tolist())
    assert not allowed & set(tokenizer.all_special_ids)
    assert all(tokenizer.decode([token]).isascii() and tokenizer.decode([token]).strip() for token in allowed)
    assert max(every) < len(tokenizer)
    assert allowed < every
    assert max(allowed_tokens(tokenizer, 100)) < 100


def test_a_suffix_that_does_not_survive_tokenisation_is_refused():
    words = PromptBuilder(tiny_tokenizer("chatml", kind="words"), "chat", V)
    with pytest.raises(ConfigurationError, match="suffix"):
        Written(words, TURNS[:1], "tree", "zzz zzz")
    good = Written(words, [Turn(role="instruction", text="the tree")], "sentence", "the vote; the")
    assert len(good.tokens) == 3
    assert good.turns(good.tokens)[0].text == "the tree the vote; the"


def test_a_prompt_that_is_cut_is_refused(tokenizer):
    with pytest.raises(ConfigurationError, match="max_tokens"):
        Written(PromptBuilder(tokenizer, "chat", V, max_tokens=48), TURNS, TARGET, SUFFIX)
