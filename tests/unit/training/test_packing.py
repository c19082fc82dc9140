"""Packed rows: the examples of a row stay apart in every class that allows it, and the others are refused.

Every class that transformers has a causal model for is asked, as far as one builds here in a few thousand parameters.
"""

from __future__ import annotations

import copy
import warnings
from collections import Counter

import pytest
import torch
from every_causal_model import TYPES, V, every_model
from tiny_causal_models import V as TINY
from tiny_causal_models import tiny_model
from tiny_tokenizers import tiny_tokenizer
from torch import nn
from training_samples import PAD, example, examples, trained
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.modeling_flash_attention_utils import prepare_fa_kwargs_from_position_ids

from bulwark.errors import BulwarkError, CheckpointError, ConfigurationError
from bulwark.models.checkpoints import load_model, save_model
from bulwark.models.embeddings import install
from bulwark.settings import validated
from bulwark.training.batches import Batch, StepBatches
from bulwark.training.checks.packing import check_packing
from bulwark.training.objectives import next_token_loss
from bulwark.training.settings import TrainingSettings

_REFUSED = """
afmoe bailing_hybrid bamba bart bert bert-generation big_bird bigbird_pegasus biogpt blenderbot blenderbot-small
bloom camembert cpmant data2vec-text deepseek_v4 electra ernie falcon falcon_h1 falcon_mamba gpt_oss
granitemoehybrid inkling2_text inkling_text jamba kimi_linear lfm2 lfm2_moe lfm3 mamba mamba2 marian mbart
megatron-bert minimax mpt mvp nemotron_h olmo_hybrid openai-gpt opt pegasus plbart prophetnet qwen3_5_moe_text
qwen3_5_text qwen3_next recurrent_gemma reformer rembert roberta roberta-prelayernorm roc_bert roformer rwkv trocr
xglm xlm xlm-roberta xlm-roberta-xl xlnet xlstm xmod zamba2 zaya
"""
REFUSED = frozenset(_REFUSED.split())
"""Encoders, positions learned or counted from the tokens themselves, ALiBi, masks made without positions; Mamba, linear
attention, recurrences, convolutions."""
_NOT_BUILT = """
blt cohere_compass_text dbrx dots3_note dots3_note_text emu3 gemma3n gemma4_assistant gemma4_unified_assistant
llama4 musicgen musicgen_melody phi4_multimodal qwen3_5 qwen3_5_moe qwen4_exp qwen4_exp_text zamba
"""
NOT_BUILT = frozenset(_NOT_BUILT.split())
"""Byte-latent, multimodal or assistant classes whose parts do not shrink, or that need a package that is not here."""
UNTRAINABLE = ("ProphetNetForCausalLM",)
"""Its output embedding sees hidden states of two streams, not one per token."""


def losses(model: nn.Module, prompts: list, packed: bool, flatten: bool = False) -> list[float]:
    """The loss of each micro-batch: of all in one row if packed, else of one example each."""
    rows = {"packed_length": sum(len(one.ids) for one in prompts), "flatten": flatten} if packed else {}
    steps = StepBatches(prompts, batch_size=len(prompts), micro_batch_size=1, pad_id=PAD, **rows)
    with torch.no_grad():
        return [float(next_token_loss(model, batch)) for batch in steps.of_step(0)]


@pytest.mark.parametrize("name", [name for name in TYPES if name not in NOT_BUILT])
def test_a_packed_row_has_the_loss_of_its_examples_or_is_refused(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = every_model(name)
    draw = torch.Generator().manual_seed(1)
    ids = [torch.randint(3, V, (length,), generator=draw).tolist() for length in (9, 13, 7)]
    prompts = [example(one, len(one)) for one in ids]
    for prompt, plain in zip(prompts, ids, strict=True):
        prompt.ids[:] = plain  # no roles: not every class can carry them
    if name not in REFUSED:
        check_packing(model, V)
        [together] = losses(model, prompts, packed=True)
        assert together == pytest.approx(sum(losses(model, prompts, packed=False)), abs=5e-5)
        return
    kind = type(model).__name__
    with pytest.raises(BulwarkError, match=rf"training\.packing: {kind} .*Set training\.packing to false"):
        check_packing(model, V)
    if kind not in UNTRAINABLE:  # it is not refused for nothing
        [together] = losses(model, prompts, packed=True)
        assert abs(together - sum(losses(model, prompts, packed=False))) > 2e-4


def test_how_many_classes_allow_packing():
    """The sets name nothing that is not there, so that a class which is renamed or added is asked, too."""
    assert set(TYPES) >= REFUSED | NOT_BUILT
    verdicts = Counter("refused" if n in REFUSED else "not built" if n in NOT_BUILT else "allowed" for n in TYPES)
    print(f"packing: {dict(verdicts)} of {len(TYPES)} classes")
    assert verdicts["allowed"] > verdicts["refused"] > verdicts["not built"]
    assert (
        not {"llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "olmo2", "gpt_neox", "mixtral"} & REFUSED
    )


def _varlen(module, query, key, value, attention_mask, scaling, dropout=0.0, position_ids=None, **_):
    """What flash attention's varlen kernel computes: causal attention inside the bounds that the positions set."""
    assert attention_mask is None
    assert query.shape[0] == 1
    (bounds, _), _ = prepare_fa_kwargs_from_position_ids(position_ids)
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    parts = [
        nn.functional.scaled_dot_product_attention(
            *(x[:, :, start:end] for x in (query, key, value)), is_causal=True, scale=scaling
        )
        for start, end in zip(bounds.tolist(), bounds.tolist()[1:], strict=False)
    ]
    return torch.cat(parts, dim=2).transpose(1, 2).contiguous(), None


@pytest.fixture
def flash(monkeypatch):
    """An attention that reads rows as flash attention does; its name makes the loop lay packed rows end to end."""
    for interface, function in ((AttentionInterface, _varlen), (AttentionMaskInterface, lambda *_, **__: None)):
        monkeypatch.setattr(interface, "_global_mapping", interface._global_mapping | {"flash_varlen": function})
    return "flash_varlen"


@pytest.mark.parametrize("family", ["llama", "qwen3", "mistral", "gpt_neox"])
def test_rows_laid_end_to_end_for_flash_attention_stay_apart(flash, family, tmp_path):
    plain = tiny_model(family)
    install(plain, {"method": "aside"})
    flashing = copy.deepcopy(plain)
    flashing.config._attn_implementation = flash
    prompts = examples(5)
    check_packing(flashing, TINY)
    [together] = losses(flashing, prompts, packed=True, flatten=True)
    assert together == pytest.approx(sum(losses(plain, prompts, packed=False)), abs=1e-5)

    seen: list[Batch] = []
    forward = flashing.forward
    flashing.forward = lambda **inputs: (seen.append(inputs["input_ids"].shape[0]), forward(**inputs))[1]
    packed = {"packing": True, "max_tokens": 24, "micro_batch_size": 4}
    result = trained(flashing, tmp_path / "flash", **packed)
    assert set(seen) == {1}
    expected = trained(plain, tmp_path / "plain", micro_batch_size=4)
    assert result.report.validation[-1][1] == pytest.approx(expected.report.validation[-1][1], abs=1e-4)


def test_a_kernel_that_does_not_read_positions_is_refused(flash, monkeypatch):
    """The check is of what is there: the same class passes with one attention and not with another."""

    def blind(*arguments, position_ids=None, **options):
        whole = torch.arange(position_ids.shape[1])[None]
        return _varlen(*arguments, position_ids=whole, **options)

    model = tiny_model()
    check_packing(model, TINY)
    monkeypatch.setitem(AttentionInterface._global_mapping, flash, blind)
    model.config._attn_implementation = flash
    with pytest.raises(BulwarkError, match=r"LlamaForCausalLM lets .* with flash_varlen attention it does not take"):
        check_packing(model, TINY)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [0.02, 0.2])
def test_what_leaks_is_found_in_fresh_weights_and_in_half_precision(dtype, scale):
    for name, apart in (("llama", True), ("mixtral", True), ("mamba", False), ("opt", False), ("gpt_oss", False)):
        model = every_model(name).to(dtype)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.mul_(scale / 0.2)
        if apart:
            check_packing(model, V)
        else:
            with pytest.raises(BulwarkError, match=r"training\.packing"):
                check_packing(model, V)


def test_the_loop_refuses_before_the_first_step_and_leaves_the_random_numbers(tmp_path):
    model = every_model("lfm2")
    with pytest.raises(BulwarkError, match=r"Lfm2ForCausalLM lets .* its Lfm2ShortConv carries"):
        trained(model, tmp_path, packing=True)
    model = tiny_model().train()
    torch.manual_seed(3)
    check_packing(model, TINY)
    drawn = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.rand(1))
    assert model.training


def test_the_attention_can_be_chosen(tmp_path):
    model = tiny_model()
    install(model, {"method": "aside"})
    save_model(model, tiny_tokenizer("chatml"), tmp_path)
    assert load_model(tmp_path).config._attn_implementation == "sdpa"
    eager = load_model(tmp_path, attention="eager")
    assert eager.config._attn_implementation == "eager"
    check_packing(eager, TINY)
    save_model(eager, tiny_tokenizer("chatml"), tmp_path / "again")
    assert (tmp_path / "again/config.json").read_bytes() == (tmp_path / "config.json").read_bytes()
    with pytest.raises(CheckpointError, match=r'flash-attn.* or set attention: "sdpa"'):
        load_model(tmp_path, attention="flash_attention_2")
    sizes = {"max_steps": 1, "batch_size": 1, "micro_batch_size": 1, "learning_rate": 0.1}
    with pytest.raises(ConfigurationError, match='half precision only; set precision: "bfloat16"'):
        validated(TrainingSettings, sizes | {"attention": "flash_attention_2"}, "here")
    assert validated(TrainingSettings, sizes, "here").attention == "sdpa"
