"""Editing in hooks: the same as writing the weights, for every kind of module."""

from __future__ import annotations

import copy

import pytest
import torch
from abliteration_samples import checksum, family_model, unit
from torch import Tensor, nn

from bulwark.abliteration.edit.edits import Form
from bulwark.abliteration.edit.export import has_adapter, merge
from bulwark.abliteration.edit.hooks import Edits, Plan
from bulwark.abliteration.edit.targets import outputs_of, targets_of, weight_of
from bulwark.errors import BulwarkError
from bulwark.models.anatomy import blocks_of

PLAIN = ["llama", "llama_biased", "gpt2", "gpt_neox", "olmo2", "gemma2", "gemma3"]
MIXTURES = ["mixtral", "qwen3_moe"]
KINDS = ["none", "pre", "full", "columns"]
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 5e-3}
SIZE = 16


def ids(rows: int = 3, length: int = 6) -> Tensor:
    return torch.randint(3, 29, (rows, length), generator=torch.Generator().manual_seed(4))


@torch.inference_mode()
def logits(model: nn.Module, given: Tensor) -> Tensor:
    return model(input_ids=given, use_cache=False).logits.float()


def plan_of(edits: Edits, seed: int = 0, strength: float | None = None) -> Plan:
    """A direction and strength of its own for every target."""
    return {
        target.path: (unit(seed + place, SIZE, torch.float32), 0.4 + 0.3 * place if strength is None else strength)
        for place, target in enumerate(edits.targets)
    }


def hooked(model: nn.Module, edits: Edits, plan: Plan, given: Tensor) -> Tensor:
    with edits.on([plan]) as rows:
        rows.are(torch.zeros(len(given), dtype=torch.long))
        return logits(model, given)


def relative(one: Tensor, two: Tensor) -> float:
    return float((one - two).norm() / two.norm())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", PLAIN)
def test_hooks_do_what_the_merged_weights_do(family, kind, dtype):
    model = family_model(family, dtype)
    edits = Edits(targets_of(model), kind)
    plan = plan_of(edits)
    before = logits(model, ids())
    through_hooks = hooked(model, edits, plan, ids())
    assert sorted(merge(model, edits, plan)) == sorted(plan)
    merged = logits(model, ids())
    # In bfloat16 two roundings apart, through two blocks: some times the resolution of one module.
    assert relative(through_hooks, merged) < TOLERANCE[dtype] * (8 if dtype == torch.bfloat16 else 1)
    assert relative(before, merged) > 20 * TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["llama", "llama_biased", "gpt2"])
def test_every_single_module_puts_out_the_same_either_way(family, kind, dtype):
    """With and without bias, weights [out, in] and [in, out]."""
    model = family_model(family, dtype)
    edits = Edits(targets_of(model), kind)
    plan = plan_of(edits)
    other = copy.deepcopy(model)
    merge(other, Edits(targets_of(other), kind), plan)
    modules = dict(other.named_modules())
    for target in edits.targets:
        width = target.module.nx if hasattr(target.module, "nx") else target.module.in_features
        inputs = torch.randn(2, 5, width, generator=torch.Generator().manual_seed(1)).to(dtype)
        with edits.on([plan]) as rows, torch.inference_mode():
            rows.are(torch.zeros(2, dtype=torch.long))
            found = target.module(inputs).float()
        with torch.inference_mode():
            expected = modules[target.path](inputs).float()
        assert relative(found, expected) < TOLERANCE[dtype]


@pytest.mark.parametrize("family", PLAIN)
def test_the_targets_are_two_per_block_and_named_as_the_model_names_them(family):
    model = family_model(family)
    targets = targets_of(model)
    modules = dict(model.named_modules())
    assert [(target.layer, target.component) for target in targets] == [
        (layer, component) for layer in range(2) for component in ("attention", "mlp")
    ]
    assert all(modules[target.path] is target.module for target in targets)
    assert all(outputs_of(target.module) == SIZE for target in targets)
    assert len(targets_of(model, ["mlp"])) == 2
    assert has_adapter(targets)


def test_a_component_that_a_block_does_not_have_is_told():
    model = family_model("llama")
    del model.model.layers[1].mlp.down_proj
    with pytest.raises(BulwarkError, match=r"Block 1 .* has no mlp output .* edit\.components"):
        targets_of(model)
    assert len(targets_of(model, ["attention"])) == 2


@pytest.mark.parametrize("family", ["llama_biased", "gpt2"])
def test_a_bias_is_not_edited(family):
    """(I - vvᵀ)Wx + b, not (I - vvᵀ)(Wx + b)."""
    model = family_model(family)
    target = targets_of(model)[0]
    vector = unit(3, SIZE, torch.float32)
    with Edits([target]).on([{target.path: (vector, 1.0)}]) as rows, torch.inference_mode():
        rows.are(torch.zeros(1, dtype=torch.long))
        found = target.module(torch.randn(1, 2, SIZE))
    assert torch.allclose(found @ vector, (target.module.bias @ vector).expand(1, 2), atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_trials_that_share_a_batch_do_not_see_each_other(kind):
    model = family_model("llama_biased")
    edits = Edits(targets_of(model), kind)
    plans = [plan_of(edits, 0), {}, plan_of(edits, 50, 1.0), dict(list(plan_of(edits, 90).items())[:2])]
    alone = [hooked(model, edits, plan, ids()) for plan in plans]
    assert torch.allclose(alone[1], logits(model, ids()), atol=1e-6)
    order = torch.tensor([2, 0, 3, 1, 0, 2, 1, 3, 3, 2, 1, 0])
    places = torch.tensor([0, 1, 2, 0, 2, 1, 1, 0, 1, 2, 2, 0])
    with edits.on(plans) as rows:
        rows.are(order)
        together = logits(model, ids()[places])
        rows.are(order[:5])  # a batch that became smaller
        fewer = logits(model, ids()[places[:5]])
    for row, (trial, place) in enumerate(zip(order.tolist(), places.tolist(), strict=True)):
        assert torch.allclose(together[row], alone[trial][place], atol=1e-4)
    assert torch.allclose(fewer, together[:5], atol=1e-4)


def test_rows_of_which_no_trial_was_told_are_refused():
    model = family_model("llama")
    edits = Edits(targets_of(model))
    with edits.on([plan_of(edits)]) as rows:
        with pytest.raises(BulwarkError, match="given 3 rows, but the trials of none"):
            logits(model, ids())
        rows.are(torch.zeros(2, dtype=torch.long))
        with pytest.raises(BulwarkError, match="given 3 rows, but the trials of 2"):
            logits(model, ids())
    assert torch.isfinite(logits(model, ids())).all()


@pytest.mark.parametrize("kind", KINDS)
def test_after_any_number_of_trials_the_model_is_bit_for_bit_the_one_it_was(kind):
    model = family_model("llama_biased")
    edits = Edits(targets_of(model), kind)
    bits, before = checksum(model), logits(model, ids())
    for seed in range(5):
        changed = hooked(model, edits, plan_of(edits, seed), ids())
        assert not torch.equal(changed, before)
    with pytest.raises(RuntimeError, match="on the way"), edits.on([plan_of(edits)]):
        raise RuntimeError("on the way")
    assert torch.equal(logits(model, ids()), before)
    assert checksum(model) == bits
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())


def test_weights_are_given_with_outputs_first():
    for family in ("llama", "gpt2"):
        for target in targets_of(family_model(family)):
            x = torch.randn(4, weight_of(target.module).shape[1])
            bias = 0 if target.bias is None else target.bias
            assert torch.allclose(x @ weight_of(target.module).T, target.module(x) - bias, atol=1e-5)


# Mixtures of experts


@pytest.mark.parametrize("family", MIXTURES)
@pytest.mark.parametrize("strength", [0.5, 1.0, 1.5])
def test_the_output_of_a_mixture_edited_is_every_expert_edited(family, strength):
    """Fused experts, [experts, hidden, inner]: by hand, in a hook on the block, and merged."""
    model, vector = family_model(family), unit(3, SIZE, torch.float32)
    edits = Edits(targets_of(model))
    mixtures = [target for target in edits.targets if target.mixture]
    assert len(mixtures) == 2
    plan = {target.path: (vector, strength) for target in edits.targets}
    by_hand = copy.deepcopy(model)
    with torch.no_grad():
        for block in blocks_of(by_hand):
            experts = block.mlp.experts.down_proj
            assert experts.dim() == 3
            across = torch.eye(SIZE) - strength * torch.outer(vector, vector)
            for expert in range(len(experts)):
                experts[expert] = across @ experts[expert]
            block.self_attn.o_proj.weight.copy_(across @ block.self_attn.o_proj.weight)
    expected = logits(by_hand, ids())
    assert relative(expected, logits(model, ids())) > 1e-2
    assert relative(hooked(model, edits, plan, ids()), expected) < 1e-5
    merge(model, edits, plan)
    assert relative(logits(model, ids()), expected) < 1e-5
    assert not has_adapter(edits.targets)


@pytest.mark.parametrize("family", MIXTURES)
@pytest.mark.parametrize("kind", ["pre", "full", "columns"])
def test_a_normalization_that_a_mixture_does_not_have_is_refused(family, kind):
    model = family_model(family)
    with pytest.raises(BulwarkError, match=r"mixture of experts.*Set edit\.normalization to none"):
        Edits(targets_of(model), kind)
    Edits(targets_of(model, ["attention"]), kind)


@pytest.mark.parametrize("family", MIXTURES)
def test_neither_router_nor_embeddings_are_touched_by_merging(family):
    model = family_model(family)
    before = {name: part.clone() for name, part in model.state_dict().items()}
    edits = Edits(targets_of(model))
    merge(model, edits, plan_of(edits))
    changed = {name for name, part in model.state_dict().items() if not torch.equal(part, before[name])}
    assert {name.split(".", 3)[-1] for name in changed} == {"self_attn.o_proj.weight", "mlp.experts.down_proj"}


# Quantised modules


def quantised(family: str) -> nn.Module:
    """Dynamic int8 in place of the linear modules that are edited."""
    model = family_model(family)
    torch.backends.quantized.engine = "fbgemm"
    for block in blocks_of(model):
        for parent, name in ((block.self_attn, "o_proj"), (block.mlp, "down_proj")):
            one = torch.ao.quantization.quantize_dynamic(
                nn.Sequential(getattr(parent, name)), {nn.Linear}, dtype=torch.qint8
            )
            setattr(parent, name, one[0])
    return model


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", ["llama", "llama_biased"])
def test_the_weight_of_a_quantised_module_is_the_dequantised_one(family):
    for target in targets_of(quantised(family)):
        expected = target.module.weight().dequantize()
        assert torch.allclose(weight_of(target.module), expected, atol=1e-3 * float(expected.abs().max()))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["none", "pre", "full"])
@pytest.mark.parametrize("family", ["llama", "llama_biased"])
def test_quantised_modules_are_edited_by_their_outputs(family, kind):
    model = quantised(family)
    edits = Edits(targets_of(model), kind)
    target, plan = edits.targets[0], plan_of(edits)
    x = torch.randn(1, 4, SIZE, generator=torch.Generator().manual_seed(1))
    bias = target.module.bias()
    bias = 0 if bias is None else bias.detach()
    with torch.inference_mode():
        bare = (target.module(x) - bias)[0]
        with edits.on([plan]) as rows:
            rows.are(torch.zeros(1, dtype=torch.long))
            found = (target.module(x) - bias)[0]
    expected = edits.form_of(target, [plan]).on(bare[None])[0]
    assert relative(found, expected) < 1e-5
    assert not has_adapter(edits.targets)
    with pytest.raises(BulwarkError, match="is quantised and cannot be written"):
        merge(model, edits, plan)


# Norms between a sublayer and the residual stream


@pytest.mark.parametrize("family", ["gemma2", "gemma3", "gemma4", "olmo2"])
@pytest.mark.parametrize("through", [True, False])
def test_what_is_added_to_the_residual_stream_has_lost_the_direction_where_the_norm_is_accounted_for(family, through):
    model, vector = family_model(family), unit(3, SIZE, torch.float32)
    edits = Edits(targets_of(model, through_norms=through))
    added: list[Tensor] = []
    handles = [
        getattr(block, name).register_forward_hook(lambda _, __, output: added.append(output))
        for block in blocks_of(model)
        for name in ("post_attention_layernorm", "post_feedforward_layernorm")
    ]
    hooked(model, edits, {target.path: (vector, 1.0) for target in edits.targets}, ids())
    for handle in handles:
        handle.remove()
    assert len(added) == 4
    for part in added:
        left = float((part @ vector).norm() / part.norm())
        assert left < 1e-5 if through else left > 1e-3


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "mixtral"])
def test_norms_before_a_sublayer_are_not_taken_for_norms_after_it(family):
    assert all(target.gain is None for target in targets_of(family_model(family)))


# Edits of the residual stream


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox"])
def test_the_residual_stream_can_be_edited_where_a_block_reads_it(family):
    model, vector = family_model(family), unit(3, SIZE, torch.float32)
    seen: list[Tensor] = []
    zeros = torch.zeros(2, SIZE)
    strengths = torch.tensor([[1.0], [0.0]])
    ablation = Form((strengths * vector)[:, None], vector.expand(2, 1, -1))
    shift = Form(zeros[:, None], zeros[:, None], t=torch.stack([torch.zeros(SIZE), 2 * vector]))
    blocks = blocks_of(model)
    handle = blocks[1].register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
    )
    given = ids(1).expand(2, -1)
    logits(model, given)
    handle.remove()
    with Edits([]).on([], {blocks[1]: ablation}) as rows:
        handle = blocks[1].register_forward_pre_hook(
            lambda _, args, kwargs: seen.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
        )
        rows.are(torch.tensor([0, 1]))
        logits(model, given)
        handle.remove()
    base, ablated = seen
    assert float((ablated[0] @ vector).abs().max()) < 1e-5
    assert torch.allclose(ablated[1], base[1], atol=1e-6)
    with Edits([]).on([], {blocks[1]: shift}) as rows:
        handle = blocks[1].register_forward_pre_hook(
            lambda _, args, kwargs: seen.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
        )
        rows.are(torch.tensor([1, 0]))
        logits(model, given)
        handle.remove()
    assert torch.allclose(seen[2][0], base[0] + 2 * vector, atol=1e-5)
    assert torch.allclose(seen[2][1], base[1], atol=1e-6)
