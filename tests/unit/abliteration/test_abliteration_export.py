"""A trial made lasting: merged weights and adapter do what the hooks did."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from abliteration_samples import (
    HIDDEN,
    Attacked,
    V,
    attack_settings,
    checksum,
    family_model,
    parameters,
    plain_ids,
    refusing_model,
    words_tokenizer,
)
from peft import PeftModel
from test_abliteration_hooks import hooked, ids, logits, plan_of, relative
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from bulwark.abliteration.directed import _ablate_embedding
from bulwark.abliteration.edit.export import adapters, merge, refuse_unwritable, write_adapter
from bulwark.abliteration.edit.hooks import Edits
from bulwark.abliteration.edit.targets import targets_of, weight_of
from bulwark.errors import BulwarkError
from bulwark.models import checkpoints
from bulwark.models.embeddings import install

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 5e-3}


def with_adapter(model, folder: Path, given: Tensor) -> Tensor:
    return logits(PeftModel.from_pretrained(model, str(folder)).eval(), given)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", ["none", "pre", "full", "columns"])
@pytest.mark.parametrize("family", ["llama", "llama_biased", "gpt2", "gemma2"])
def test_the_written_adapter_is_the_hooks_and_the_merged_weights(tmp_path, family, kind, dtype):
    """Exactly where the edit has rank 1; elsewhere at full rank, as nothing is left out then."""
    model = family_model(family, dtype)
    edits = Edits(targets_of(model), kind)
    plan, bits, before = plan_of(edits), checksum(model), logits(model, ids())
    rank = 1 if kind in ("none", "pre") else 16
    write_adapter(model, adapters(edits, plan, rank), tmp_path, "the parent")
    assert checksum(model) == bits
    assert torch.equal(logits(model, ids()), before)
    through_hooks = hooked(model, edits, plan, ids())
    loaded = with_adapter(family_model(family, dtype), tmp_path, ids())
    folded = PeftModel.from_pretrained(family_model(family, dtype), str(tmp_path)).merge_and_unload().eval()
    merge(model, edits, plan)
    merged = logits(model, ids())
    scale = 8 if dtype == torch.bfloat16 else 3  # through two blocks, which amplify what roundings differ by
    for other in (through_hooks, loaded, logits(folded, ids())):
        assert relative(other, merged) < scale * TOLERANCE[dtype]
    assert relative(before, merged) > 20 * TOLERANCE[dtype]


def test_an_adapter_of_low_rank_is_near_and_nearer_with_its_rank(tmp_path):
    model = family_model("llama")
    edits = Edits(targets_of(model), "full")
    plan = plan_of(edits, strength=1.0)
    through_hooks = hooked(model, edits, plan, ids())
    errors = []
    for rank in (1, 3, 6):
        write_adapter(model, adapters(edits, plan, rank), tmp_path / str(rank), "x")
        loaded = with_adapter(family_model("llama"), tmp_path / str(rank), ids())
        errors.append(relative(loaded, through_hooks))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.2


def test_the_adapters_folder_names_no_place_of_this_machine(tmp_path):
    model = family_model("llama")
    edits = Edits(targets_of(model))
    write_adapter(model, adapters(edits, plan_of(edits), 1), tmp_path / "adapter", "the parent of this checkpoint")
    assert sorted(file.name for file in (tmp_path / "adapter").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    text = (tmp_path / "adapter" / "adapter_config.json").read_text()
    assert "the parent of this checkpoint" in text
    assert str(tmp_path) not in text
    assert all(file.stat().st_mode & 0o044 == 0o044 for file in (tmp_path / "adapter").glob("*.safetensors"))


@pytest.mark.filterwarnings("ignore")
def test_a_module_that_a_trial_does_not_edit_has_no_adapter_and_keeps_its_weights(tmp_path):
    model = family_model("llama")
    edits = Edits(targets_of(model))
    some = dict(list(plan_of(edits).items())[1:3])
    untouched = [target.path for target in edits.targets if target.path not in some]
    before = {target.path: weight_of(target.module).clone() for target in edits.targets}
    assert sorted(adapters(edits, some, 1)) == sorted(some)
    write_adapter(model, adapters(edits, some, 1), tmp_path, "x")
    through_hooks = hooked(model, edits, some, ids())
    assert relative(with_adapter(family_model("llama"), tmp_path, ids()), through_hooks) < 1e-5
    assert sorted(merge(model, edits, some)) == sorted(some)
    for target in edits.targets:
        same = torch.equal(weight_of(target.module), before[target.path])
        assert same == (target.path in untouched)


def test_merging_in_low_precision_is_computed_wide_and_rounded_once():
    narrow = family_model("llama", torch.bfloat16)
    edits = Edits(targets_of(narrow))
    plan = plan_of(edits, strength=1.0)
    before = {target.path: weight_of(target.module) for target in edits.targets}
    merge(narrow, edits, plan)
    for target in edits.targets:
        vector = plan[target.path][0]
        expected = before[target.path] - torch.outer(vector, vector @ before[target.path])
        assert torch.equal(target.module.weight, expected.bfloat16())
        left = (vector @ weight_of(target.module)).norm() / weight_of(target.module).norm()
        assert float(left) < 2e-3


def test_experts_whose_output_axis_is_ambiguous_are_refused():
    model = family_model("mixtral")
    edits = Edits(targets_of(model))
    for block in model.model.layers:
        block.mlp.experts.down_proj = torch.nn.Parameter(torch.zeros(4, 16, 16))
        del block.mlp.experts.is_transposed
    with pytest.raises(BulwarkError, match=r"it is ambiguous which axis are the 16 outputs"):
        merge(model, edits, plan_of(edits))
    with pytest.raises(BulwarkError, match=r"it is ambiguous which axis are the 16 outputs"):
        refuse_unwritable(edits.targets)


# Exported and loaded again

TRIALS = {
    "global": parameters(1.1, 1.0, index=0.7),
    "per layer": parameters(1.15, 1.1),
    "hybrid, global": parameters(1.05, 1.0, index=0.5, method="hybrid"),
}


@pytest.mark.parametrize("trial", TRIALS)
@pytest.mark.parametrize("normalization", ["none", "full"])
def test_the_reloaded_export_reproduces_the_trials_kl_and_verdicts(tmp_path, trial, normalization):
    """With the trial's own directions and scope: ICONOCLAST's script leaves the benign subspace in and takes each
    layer's own direction whatever the trial did (B.8, 14)."""
    settings = attack_settings(
        directions={
            "methods": ["mean", "variance", "hybrid"],
            "orthogonalise": True,
            "benign_rank": 4,
        },
        edit={"normalization": normalization},
        objectives={"overrefusal": 0.25},
    )
    subject = Attacked(settings)
    found = subject.examine([TRIALS[trial]], [])[0]
    plan = subject.plan(TRIALS[trial])
    merge(subject.model, subject.edits, plan)
    checkpoints.save_model(subject.model, subject.tokenizer, tmp_path)
    subject.examiner.release()
    subject.examiner.subject.model = checkpoints.load_model(tmp_path, "float32").eval()
    answers = subject.examiner.answers([{}], "harmful")[0]
    assert [subject.examiner.refuses(one.response) for one in answers] == found.verdicts
    assert float(subject.examiner.divergences(1, None).mean()) == pytest.approx(found.measures.kl, rel=1e-3, abs=1e-5)
    assert found.measures.kl > 1e-3


@pytest.mark.parametrize("scope", ["global", "per layer"])
def test_a_plan_holds_the_trials_scope_and_what_is_kept_out(scope):
    settings = attack_settings(directions={"orthogonalise": True, "benign_rank": 4})
    subject = Attacked(settings)
    index = 0.6 if scope == "global" else None
    plan = subject.plan(parameters(1.2, 1.0, index=index))
    own = {target.path: subject.directions.candidates["mean"][target.layer + 1] for target in subject.edits.targets}
    for target in subject.edits.targets:
        vector, strength = plan[target.path]
        assert strength == {"attention": 1.2, "mlp": 1.0}[target.component]
        protected = subject.directions.protected[target.layer + 1].float()
        assert len(protected) == 5
        assert float((protected @ vector).abs().max()) < 1e-6
        same = torch.allclose(vector, own[target.path].float(), atol=1e-5)
        assert same == (scope == "per layer")


@pytest.mark.parametrize("normalization", ["none", "pre"])
def test_the_benign_part_of_an_edited_modules_output_stays_with_normalization_none_alone(normalization):
    """UᵀW' = UᵀW after the whole pipeline."""
    settings = attack_settings(
        directions={"orthogonalise": True, "benign_rank": 4}, edit={"normalization": normalization}
    )
    subject = Attacked(settings)
    before = {target.path: weight_of(target.module).double().clone() for target in subject.edits.targets}
    protected = subject.directions.protected
    targets = list(subject.edits.targets)
    merge(subject.model, subject.edits, subject.plan(parameters(1.0, 1.0, index=0.5)))
    for target in targets:
        basis = protected[target.layer + 1]
        change = weight_of(target.module).double() - before[target.path]
        leak = float((basis @ change).norm() / change.norm())
        assert leak < 1e-5 if normalization == "none" else leak > 1e-3


def test_exported_weights_are_an_ordinary_model_for_transformers(tmp_path):
    """A vanilla checkpoint: no bulwark is needed to open it, ids are plain."""
    subject = Attacked()
    plan = subject.plan(TRIALS["global"])
    prompt = subject.prompts.harmful_search[3]
    with subject.edits.on([plan]) as rows, torch.inference_mode():
        rows.are(torch.zeros(1, dtype=torch.long))
        through_hooks = subject.model(input_ids=torch.tensor([prompt.ids])).logits
    merge(subject.model, subject.edits, plan)
    checkpoints.save_model(subject.model, subject.tokenizer, tmp_path)
    other = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    with torch.inference_mode():
        found = other(input_ids=torch.tensor([plain_ids(prompt)])).logits
    assert torch.allclose(found, through_hooks, atol=1e-4)
    assert not torch.allclose(
        found, refusing_model(installed=False)(torch.tensor([plain_ids(prompt)])).logits, atol=1e-2
    )


def test_a_tied_embedding_is_ablated_alone_and_the_output_keeps_its_weights(tmp_path):
    """Arditi et al. ablate the input embedding; tied to it, the output embedding would be changed as well."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=V, hidden_size=HIDDEN, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=64, pad_token_id=2, eos_token_id=2, bos_token_id=None, tie_word_embeddings=True,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    install(model, {"method": "vanilla"})
    unit = torch.nn.functional.normalize(torch.randn(HIDDEN, dtype=torch.float64), dim=0)
    before = model.lm_head.weight.detach().clone()
    assert _ablate_embedding(model, unit) == ["embedding"]
    checkpoints.save_model(model, words_tokenizer(), tmp_path)
    again = checkpoints.load_model(tmp_path)
    assert torch.equal(again.get_output_embeddings().weight, before)
    assert float((again.get_input_embeddings().weight @ unit.float()).abs().max()) < 1e-6
    ids = torch.tensor([[1, 5, 7]])
    assert torch.equal(again(ids).logits, model(ids).logits)
