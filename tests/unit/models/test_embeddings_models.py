"""The role embedding inside causal LMs of every family, tied and untied: nothing else of the model needs to know."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_causal_models import FAMILIES, HIDDEN, V, tiny_model, tokens
from tiny_tokenizers import tiny_tokenizer
from torch import nn
from transformers import AutoModelForCausalLM, T5Config, T5ForConditionalGeneration

from bulwark.models.checkpoints import load_model, save_model
from bulwark.models.embeddings import RoleEmbedding, install, role_embedding_of, rotate

ASIDE = {"method": "aside"}
EVERY_MODEL = pytest.mark.parametrize("family", FAMILIES)
EVERY_TYING = pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])


def loss_of(model, ids, roles):
    """Next-token loss over all tokens of encoded input and plain labels."""
    return model(input_ids=ids + V * roles, labels=ids).loss


@EVERY_MODEL
@EVERY_TYING
def test_forward_is_the_rotation_by_hand(family, tied):
    model = tiny_model(family, tied)
    ids, roles = tokens(2, 9)
    plain = model(ids).logits
    rows = model.get_input_embeddings()(ids)
    by_hand = model(inputs_embeds=torch.where((roles != 1)[..., None], rotate(rows), rows)).logits

    assert torch.equal(_installed(model, {"method": "vanilla"})(ids + V * roles).logits, plain)
    model = _installed(model, ASIDE)
    assert torch.equal(model(ids + V * roles).logits, by_hand)
    assert torch.equal(model(ids + V).logits, plain)  # all instruction
    assert not torch.allclose(by_hand, plain, atol=1e-3)
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) == tied


@EVERY_MODEL
def test_left_padding_changes_nothing(family):
    model = _installed(tiny_model(family), ASIDE | {"linear_shift": True})
    ids, roles = tokens(2, 9)
    encoded = ids + V * roles
    short = encoded[1:, :5]
    batch = torch.stack([encoded[0], torch.cat([torch.zeros(4, dtype=torch.long), short[0]])])
    mask = torch.tensor([[1] * 9, [0] * 4 + [1] * 5])
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    together = model(batch, attention_mask=mask, position_ids=positions).logits
    assert torch.allclose(together[0], model(encoded[:1]).logits[0], atol=1e-5)
    assert torch.allclose(together[1, 4:], model(short).logits[0], atol=1e-5)


@EVERY_MODEL
@pytest.mark.parametrize("response_role", ["data", "instruction"])
def test_cached_generation_is_the_full_forward_at_every_step(family, response_role):
    model = _installed(tiny_model(family), ASIDE | {"response_role": response_role})
    ids, roles = tokens(2, 6)
    prompt = ids + V * roles
    options = {"attention_mask": torch.ones_like(prompt), "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    produced = model.generate(prompt, max_new_tokens=8, min_new_tokens=8, **options)
    sequence = prompt
    for _ in range(8):
        following = model(sequence, use_cache=False).logits[:, -1].argmax(-1, keepdim=True)
        sequence = torch.cat([sequence, following], dim=1)
    assert torch.equal(produced, sequence)
    assert produced[:, 6:].max() < V


@EVERY_MODEL
@EVERY_TYING
def test_gradient_reaches_the_weight_as_by_hand(family, tied):
    model = tiny_model(family, tied)
    ids, roles = tokens(2, 7)
    plain = copy.deepcopy(model)
    rows = plain.get_input_embeddings()(ids)
    plain(inputs_embeds=torch.where((roles != 1)[..., None], rotate(rows), rows), labels=ids).loss.backward()
    loss_of(_installed(model, ASIDE), ids, roles).backward()
    expected, found = (m.get_input_embeddings().weight.grad for m in (plain, model))
    assert torch.allclose(found, expected, atol=1e-6)
    assert found.abs().max() > 0


@EVERY_MODEL
def test_gradient_checkpointing_gives_the_same_gradients(family):
    ids, roles = tokens(2, 7)
    model = _installed(tiny_model(family, tied=True), ASIDE | {"linear_shift": True}).train()
    again = copy.deepcopy(model)
    again.activation_checkpointing_enable()
    for each in (model, again):
        loss_of(each, ids, roles).backward()
    for (name, expected), (_, found) in zip(model.named_parameters(), again.named_parameters(), strict=True):
        assert torch.allclose(found.grad, expected.grad, atol=1e-6), name


@EVERY_MODEL
def test_lora_trains_beside_the_role_embedding(family):
    model = _installed(tiny_model(family), ASIDE)
    ids, roles = tokens(2, 7)
    before = model(ids + V * roles).logits.detach()
    modules = ["query_key_value"] if family == "gpt_neox" else ["q_proj", "v_proj"]
    lora = get_peft_model(model, LoraConfig(r=2, target_modules=modules, task_type="CAUSAL_LM"))
    assert role_embedding_of(lora) is model.get_input_embeddings()
    assert torch.allclose(lora(input_ids=ids + V * roles).logits, before, atol=1e-6)  # LoRA starts at zero

    optimizer = torch.optim.SGD([p for p in lora.parameters() if p.requires_grad], lr=0.5)
    losses = []
    for _ in range(8):
        losses.append(loss_of(lora.train(), ids, roles))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < losses[0] - 0.01
    trained = lora.eval()(input_ids=ids + V * roles).logits
    merged = lora.merge_and_unload()
    assert isinstance(merged.get_input_embeddings(), RoleEmbedding)
    assert torch.allclose(merged(ids + V * roles).logits, trained, atol=1e-5)


def test_an_embedding_trained_beside_lora_is_found():
    model = _installed(tiny_model(), {"method": "ise"})
    config = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["embed_tokens"])
    lora = get_peft_model(model, config)
    found = role_embedding_of(lora)
    ids, roles = tokens(2, 7)
    loss_of(lora, ids, roles).backward()
    assert found.role_shift.grad.abs().max() > 0
    assert found.weight.grad.abs().max() > 0


@EVERY_TYING
def test_a_resized_vocabulary_keeps_its_roles(tied):
    model = _installed(tiny_model("llama", tied), ASIDE)
    ids, roles = tokens(1, 6)
    before = model(ids + V * roles).logits
    model.resize_token_embeddings(V + 3)
    with pytest.raises(ValueError, match=rf"resized from {V} to {V + 3} rows.* new PromptBuilder for {V + 3} rows"):
        model(ids + V * roles)  # roles would shift silently: data at V rows is no data at V + 3
    embedding = install(model)
    assert embedding.num_embeddings == V + 3
    assert embedding(torch.tensor([V + 2])).shape == (1, HIDDEN)
    after = model(ids + (V + 3) * roles).logits
    assert after.shape[-1] == V + 3
    assert torch.allclose(after[..., :V], before, atol=1e-6)


def test_a_model_resized_before_it_is_saved_needs_no_more_than_a_new_builder(tmp_path):
    model = _installed(tiny_model(), ASIDE)
    model.resize_token_embeddings(V - 2)
    save_model(model, tiny_tokenizer("chatml"), tmp_path)
    assert load_model(tmp_path)(torch.tensor([[V - 3, 4]])).logits.shape[-1] == V - 2
    model.resize_token_embeddings(V)
    model(torch.tensor([[3 * V - 1]]))  # back at the rows that the roles were made for


@EVERY_MODEL
@pytest.mark.parametrize(
    "description", [ASIDE, ASIDE | {"alpha": 0.7, "linear_shift": True}, ASIDE | {"learned": True}]
)
def test_it_is_compiled_without_a_break(family, description):
    embedding = install(tiny_model(family), description)
    ids, roles = tokens(2, 9)
    expected = embedding(ids + V * roles)
    torch._dynamo.reset()
    compiled = torch.compile(embedding, fullgraph=True, backend="eager")
    found = compiled(ids + V * roles)
    assert torch.equal(found, expected)
    (gradient,) = torch.autograd.grad(found.square().sum(), embedding.weight)
    (other,) = torch.autograd.grad(expected.square().sum(), embedding.weight)
    assert torch.equal(gradient, other)
    for bad in (3 * V, -1):
        with pytest.raises((IndexError, RuntimeError)):
            compiled(torch.tensor([[bad]]))


def test_installing_again():
    model = tiny_model()
    first = install(model, {"method": "ise"})
    assert install(model) is first
    assert install(model, {"method": "ise", "response_role": "data"}) is first
    aside = install(model, ASIDE)
    assert aside.weight is first.weight
    assert aside.role_shift is None
    assert model.config.role_embedding["method"] == "aside"
    assert install(model, {"method": "vanilla"}).method == "vanilla"
    assert not hasattr(model.config, "role_embedding")
    assert type(model.config).__name__ == "LlamaConfig"


def test_the_config_stays_that_of_the_family():
    model = _installed(tiny_model("qwen3"), ASIDE)
    assert (model.config.model_type, model.config.to_dict()["model_type"]) == ("qwen3", "qwen3")
    copied = copy.deepcopy(model)
    assert type(copied.config) is type(model.config)
    assert copied.config.to_dict() == model.config.to_dict()


def test_the_start_of_learned_parts_follows_the_seed():
    def shift(seed):
        model = tiny_model()
        torch.manual_seed(seed)
        return install(model, {"method": "ise"}).role_shift

    assert torch.equal(shift(5), shift(5))
    assert not torch.equal(shift(5), shift(6))
    assert 0.1 < shift(5).std() < 0.3  # initializer_range of the model is 0.2


def test_models_that_cannot_carry_roles_are_refused():
    encoder_decoder = T5ForConditionalGeneration(
        T5Config(vocab_size=V, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    )
    with pytest.raises(ValueError, match="not a causal language model"):
        install(encoder_decoder, ASIDE)
    with pytest.raises(ValueError, match="install before wrapping"):
        install(get_peft_model(tiny_model(), LoraConfig(r=2, target_modules=["q_proj"])), ASIDE)

    hooked = tiny_model()
    hooked.enable_input_require_grads()
    with pytest.raises(ValueError, match="carries hooks"):
        install(hooked, ASIDE)

    second_table = tiny_model()
    second_table.model.embed_tokens_per_layer = nn.Embedding(V, 4)
    with pytest.raises(ValueError, match=r"second table, model\.embed_tokens_per_layer"):
        install(second_table, ASIDE)

    odd = tiny_model()
    odd.set_input_embeddings(nn.Embedding(V, 15))
    with pytest.raises(ValueError, match=r"hidden size of this model is odd \(15\)"):
        install(odd, ASIDE)
    assert type(odd.config).__name__ == "LlamaConfig"

    with pytest.raises(ValueError, match="no role embedding"):
        role_embedding_of(tiny_model())


def test_bfloat16_quarter_turn_is_exact_inside_a_model():
    model = tiny_model("gemma3", dtype=torch.bfloat16)
    ids, roles = tokens(2, 5)
    rows = model.get_input_embeddings()(ids)
    by_hand = model(inputs_embeds=torch.where((roles != 1)[..., None], rotate(rows), rows)).logits
    assert torch.equal(_installed(model, ASIDE)(ids + V * roles).logits, by_hand)


def test_a_described_config_is_not_taken_for_the_plain_one():
    config = copy.deepcopy(_installed(tiny_model(), {"method": "ise"}).config)
    with pytest.raises(ValueError, match="Unrecognized configuration class"):
        AutoModelForCausalLM.from_config(config)


def _installed(model, description):
    install(model, description)
    return model
