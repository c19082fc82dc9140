"""An edit is checked on the model that it edits: every class of transformers either keeps its promise or is refused."""

from __future__ import annotations

import copy

import pytest
import torch
from abliteration_samples import family_model, unit
from every_causal_model import TYPES, V, every_model
from torch import Tensor, nn

from bulwark.abliteration.edit.checking import check_edits
from bulwark.abliteration.edit.export import merge, refuse_unwritable
from bulwark.abliteration.edit.hooks import Edits
from bulwark.abliteration.edit.targets import targets_of
from bulwark.errors import BulwarkError
from bulwark.models.anatomy import blocks_of, hidden_size
from bulwark.prompts.builder import Prompt

_REFUSED = """
axk1 bamba bart bert bert-generation big_bird bigbird_pegasus biogpt blenderbot blenderbot-small bloom camembert
codegen cpmant ctrl data2vec-text deepseek_v4 electra ernie falcon falcon_h1 falcon_mamba gemma3n_text gemma4
gemma4_text git gpt_neo gptj granitemoehybrid hrm_text inkling2_text inkling_text jamba jetmoe longcat_flash mamba
mamba2 marian mbart megatron-bert minimax modernbert-decoder moshi moss_transcribe_diarize mpt mvp nemotron_h
olmo_hybrid openai-gpt opt pegasus plbart prophetnet recurrent_gemma reformer rembert roberta roberta-prelayernorm
roc_bert roformer rwkv trocr whisper xglm xlm xlm-roberta xlm-roberta-xl xlnet xlstm xmod zamba2 zaya
"""
REFUSED = frozenset(_REFUSED.split())
"""Encoders, older classes whose parts have names that are not known, states that are no attention (Mamba, RWKV, xLSTM),
more than one writer per part, an input per layer, norms among experts, streams that are mixed."""
_NOT_BUILT = """
blt cohere_compass_text dbrx dots3_note dots3_note_text emu3 gemma3n gemma4_assistant gemma4_unified_assistant llama4
musicgen musicgen_melody phi4_multimodal qwen3_5 qwen3_5_moe qwen4_exp qwen4_exp_text zamba
"""
NOT_BUILT = frozenset(_NOT_BUILT.split())
"""Classes whose parts do not shrink, or that need a package that is not here (as in the tests of packing)."""


def prompts(rows: int = 4, length: int = 14, vocabulary: int = V) -> list[Prompt]:
    ids = torch.randint(3, vocabulary, (rows, length), generator=torch.Generator().manual_seed(2)).tolist()
    return [Prompt(row, [], [1] * length, [], "", False) for row in ids]


@torch.inference_mode()
def logits(model: nn.Module) -> Tensor:
    ids = torch.tensor([prompt.ids for prompt in prompts()])
    return model(input_ids=ids, use_cache=False).logits


def checked(model: nn.Module) -> None:
    """What an attack does before it searches."""
    targets = targets_of(model)
    refuse_unwritable(targets)
    check_edits(model, targets, prompts())


@pytest.mark.parametrize("model_type", [name for name in TYPES if name not in NOT_BUILT])
def test_an_edit_keeps_its_promise_or_the_family_is_refused(model_type):
    model = every_model(model_type)
    if model_type in REFUSED:
        with pytest.raises(BulwarkError):
            checked(model)
        return
    checked(model)
    vector = unit(3, hidden_size(model), torch.float32)
    edits = Edits(targets_of(model))
    plan = {target.path: (vector, 1.0) for target in edits.targets}
    before = logits(model)
    with edits.on([plan]) as rows:
        rows.are(torch.zeros(4, dtype=torch.long))
        hooked = logits(model)
    merge(model, edits, plan)
    merged = logits(model)
    assert float((hooked - merged).norm() / merged.norm()) < 1e-3
    assert float((before - merged).norm() / merged.norm()) > 1e-3


@pytest.mark.parametrize(
    "family", ["llama", "llama_biased", "gpt2", "gpt_neox", "olmo2", "gemma2", "gemma3", "mixtral"]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_usual_families_pass_in_any_number_type(family, dtype):
    model = family_model(family, dtype)
    check_edits(model, targets_of(model), prompts(vocabulary=29))


@pytest.mark.parametrize("component", ["attention", "mlp"])
@pytest.mark.parametrize("family", ["llama", "gpt_neox", "gemma2", "mixtral"])
def test_one_component_alone_is_checked_without_the_other(family, component):
    model = family_model(family)
    check_edits(model, targets_of(model, [component]), prompts(vocabulary=29))


def beside(model: nn.Module, layer: int) -> nn.Module:
    """The model with a block that writes something more into the stream."""

    class More(type(blocks_of(model)[layer])):
        def forward(self, hidden_states, *args, **kwargs):
            extra = 0.1 * torch.tanh(hidden_states @ self.beside)
            return super().forward(hidden_states, *args, **kwargs) + extra

    block = blocks_of(model)[layer]
    block.__class__ = More
    block.beside = nn.Parameter(torch.randn(16, 16, generator=torch.Generator().manual_seed(1)))
    return model


@pytest.mark.parametrize("layer", [0, 1])
def test_a_part_beside_those_that_are_edited_is_told_with_the_block(layer):
    model = beside(family_model("llama"), layer)
    with pytest.raises(BulwarkError, match=rf"Block {layer} \(More\) still writes [\d.]+% of a direction") as raised:
        check_edits(model, targets_of(model), prompts(vocabulary=29))
    assert f"model.layers.{layer}.self_attn.o_proj" in str(raised.value)


def test_a_norm_of_an_unknown_name_behind_a_sublayer_is_told():
    model = family_model("gemma2")
    targets = targets_of(model, through_norms=False)
    with pytest.raises(BulwarkError, match=r"Block 0 .* a norm of another name stands behind them"):
        check_edits(model, targets, prompts(vocabulary=29))


def test_a_check_leaves_the_model_as_it_was():
    model = family_model("llama")
    other = copy.deepcopy(model)
    check_edits(model, targets_of(model), prompts(vocabulary=29))
    check_edits(model, targets_of(model, ["mlp"]), prompts(vocabulary=29))
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_weights_of_one_byte_are_refused_before_anything_else():
    """FP8: the values mean nothing without their blocks' scales, which an edit would leave as they are."""
    model = family_model("llama")
    weight = model.model.layers[1].mlp.down_proj.weight
    model.model.layers[1].mlp.down_proj.weight = nn.Parameter(weight.to(torch.float8_e4m3fn), requires_grad=False)
    with pytest.raises(BulwarkError, match=r"layers\.1\.mlp\.down_proj is quantised \(float8_e4m3fn\) and cannot"):
        refuse_unwritable(targets_of(model))


def test_quantised_experts_are_refused_before_anything_else():
    model = family_model("mixtral")
    experts = model.model.layers[0].mlp.experts
    experts.down_proj = nn.Parameter(experts.down_proj.to(torch.float8_e4m3fn), requires_grad=False)
    with pytest.raises(BulwarkError, match=r"layers\.0\.mlp\.experts\.down_proj is quantised"):
        refuse_unwritable(targets_of(model))


def test_experts_whose_matrices_are_square_are_written_on_the_right_side():
    """gpt-oss: hidden and inner width are equal, and its class says that outputs come last."""
    model = every_model("gpt_oss")
    experts = blocks_of(model)[0].mlp.experts
    assert experts.is_transposed
    assert targets_of(model)[1].mixture
    refuse_unwritable(targets_of(model))
