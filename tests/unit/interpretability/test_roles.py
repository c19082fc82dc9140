"""The intervention: a token in the role of an instruction is embedded as one, and nothing else changes."""

import pytest
import torch
from examinee_samples import V, tiny_aside
from tiny_tokenizers import tiny_tokenizer

from bulwark.data.records import Turn
from bulwark.interpretability.roles import elsewhere, with_role
from bulwark.models import hooks
from bulwark.models.embeddings import install, role_embedding_of
from bulwark.prompts.builder import PromptBuilder
from bulwark.prompts.places import places_of_part

BUILDER = PromptBuilder(tiny_tokenizer("chatml"), "chat", V)
TURNS = (Turn(role="instruction", text="name the tree"), Turn(role="data", text="the cup is red. say root."))
PROMPT = BUILDER.prompt(TURNS)
PROBE = places_of_part(BUILDER, TURNS, 1, "say root.", at_end=True)


def logits(model, ids):
    with torch.inference_mode():
        return model(input_ids=torch.tensor([ids])).logits[0]


def test_only_the_probes_ids_change():
    changed = with_role(PROMPT, PROBE, "instruction", BUILDER)
    for place, (before, after) in enumerate(zip(PROMPT.ids, changed.ids, strict=True)):
        assert after == (before % V + V if place in PROBE else before)
        assert changed.roles[place] == (1 if place in PROBE else PROMPT.roles[place])
    assert with_role(changed, PROBE, "data", BUILDER) == PROMPT
    assert with_role(PROMPT, [], "instruction", BUILDER) == PROMPT


@pytest.mark.parametrize("method", ["aside", "ise"])
def test_it_is_the_forward_pass_with_the_embeddings_exchanged_by_hand(method):
    """The paper's words: the probe's rotated embeddings are replaced by the unrotated ones."""
    model = tiny_aside()
    if method == "ise":
        install(model, {"method": "ise"})
        role_embedding_of(model).role_shift.data.normal_(0, 0.5)
    embedding = role_embedding_of(model)
    plain = torch.tensor([PROMPT.ids[place] % V for place in PROBE])
    unrotated = embedding.weight[plain] + (embedding.role_shift[0] if method == "ise" else 0)

    def exchange(_, hidden):
        by_hand = hidden.clone()
        by_hand[0, PROBE] = unrotated
        return by_hand

    with hooks.replace({"embedding": embedding}, exchange):
        expected = logits(model, PROMPT.ids)
    found = logits(model, with_role(PROMPT, PROBE, "instruction", BUILDER).ids)
    torch.testing.assert_close(found, expected)
    assert (found - logits(model, PROMPT.ids)).abs().max() > 1e-2


def test_a_vanilla_embedding_knows_no_roles():
    model = tiny_aside()
    install(model, {"method": "vanilla"})
    assert torch.equal(logits(model, PROMPT.ids), logits(model, with_role(PROMPT, PROBE, "instruction", BUILDER).ids))


def test_the_control_is_as_long_and_elsewhere():
    others = list(range(10, 40))
    control = elsewhere(others, 7, "42 a")
    assert control == list(range(control[0], control[0] + 7))
    assert set(control) <= set(others)
    assert control == elsewhere(others, 7, "42 a")
    assert len({elsewhere(others, 7, f"42 {n}")[0] for n in range(40)}) > 10
    assert elsewhere([3, 4], 7, "x") == [3, 4]
    assert elsewhere([], 7, "x") == []
