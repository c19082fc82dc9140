"""A search on weights of 4 bits whose edit is written into the weights that they were made from.

With bitsandbytes itself where it is installed (`make four_bit`), and everywhere with a linear module of our own that
packs its weight in blocks of 64 on the sixteen levels of NF4.
"""

from __future__ import annotations

import importlib.util
import json
import weakref
from dataclasses import replace
from typing import Any

import pytest
import torch
from abliteration_samples import checkpoint, job_for, refusing_model
from safetensors.torch import load_file
from torch import Tensor, nn

from bulwark.abliteration import attack
from bulwark.abliteration.edit.export import refuse_unwritable
from bulwark.abliteration.edit.targets import targets_of, weight_of
from bulwark.errors import BulwarkError, CheckpointError
from bulwark.models import checkpoints
from bulwark.models.placing import spread
from bulwark.models.placing.loading import Loading
from bulwark.settings import validated
from bulwark.steps import module_of

# QLoRA (arXiv 2305.14314), App. E
LEVELS = [-1.0, -0.6961928, -0.52507305, -0.39491749, -0.28444138, -0.18477343, -0.09105004, 0.0, 0.0795803, 0.1609302,
          0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0]  # fmt: skip
importlib.import_module("peft")  # what is logged while it is imported would keep the frames alive that import it
BITSANDBYTES = importlib.util.find_spec("bitsandbytes") is not None
SEARCH = {"trials": 6, "startup_trials": 3, "ei_candidates": 4, "trials_per_batch": 3, "max_new_tokens": 6}
SPACE = {
    "max_weight": {"attention": [0.8, 1.5], "mlp": [0.2, 1.5]},
    "max_weight_position": [0.0, 1.0],
    "min_weight_distance": 2.0,
}
GIVEN: dict[str, dict[str, Any]] = {
    "heretic": {"space": SPACE, "search": SEARCH, "edit": {"normalization": "full"}},
    "refusal_direction": {"layers_below": 1.0, "kl_at_most": 0.5, "induced_at_least": -20.0, "max_new_tokens": 6},
    "gradient_edit": {"rank": 2, "rounds": 1, "steps": 6, "batch_size": 4, "max_new_tokens": 6},
}


class Packed(nn.Module):
    """A linear module whose weight is a row of bytes, two of its numbers in each."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.compute_dtype, self.bias = linear.weight.dtype, linear.bias
        blocks = nn.functional.pad(linear.weight.detach().flatten(), (0, -linear.weight.numel() % 64)).view(-1, 64)
        self.register_buffer("scales", blocks.abs().amax(1, keepdim=True))
        codes = (blocks[..., None] / self.scales[..., None] - torch.tensor(LEVELS)).abs().argmin(-1).to(torch.uint8)
        self.weight = nn.Parameter(codes[:, ::2] * 16 + codes[:, 1::2], requires_grad=False)

    def unpacked(self) -> Tensor:
        codes = torch.stack([self.weight // 16, self.weight % 16], dim=-1).flatten(1).long()
        values = (torch.tensor(LEVELS)[codes] * self.scales).flatten()
        return values[: self.out_features * self.in_features].view(self.out_features, self.in_features)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.unpacked(), self.bias)


def emulated(folder, dtype, device, loading: Loading, unfinished: bool = False):
    model = checkpoints.load_model(folder, dtype, device, unfinished)
    if loading.four_bit:
        for block in model.model.layers:
            for name, part in list(block.named_modules()):
                if isinstance(part, nn.Linear):
                    parent, _, last = name.rpartition(".")
                    setattr(block.get_submodule(parent), last, Packed(part))
    return model


@pytest.fixture(params=["emulated", pytest.param("bitsandbytes", marks=pytest.mark.skipif(
    not BITSANDBYTES, reason="make four_bit installs bitsandbytes"))])  # fmt: skip
def packing(request, monkeypatch) -> str:
    if request.param == "emulated":
        monkeypatch.setattr(spread, "load", emulated)
    else:  # some CPUs have a layout of their own, for rows of a multiple of 64 numbers, which the tiny model's are not
        monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: False)
    return request.param


def is_packed(model: nn.Module) -> bool:
    kinds = {type(part).__name__ for block in model.model.layers for part in block.modules() if hasattr(part, "weight")}
    return bool(kinds & {"Packed", "Linear4bit"})


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", list(GIVEN))
def test_the_edit_that_is_found_in_4_bits_is_written_into_the_weights_as_they_were(
    kind, packing, tmp_path, monkeypatch
):
    parent = checkpoint(tmp_path / "parent")
    step = module_of(kind)
    given = {"prompts": {"harmful": "harmful", "harmless": "harmless"}, "dtype": "float32", "quantised": "nf4"}
    settings = validated(step.Settings, given | GIVEN[kind], "here")
    job = job_for(kind, tmp_path / "out" / "model", parent)
    alive: list[weakref.ref] = []

    def alone(load):
        def loaded(*given, **options):
            assert all(model() is None for model in alive), "never two whole models"
            model = load(*given, **options)
            alive.append(weakref.ref(model))
            return model

        return loaded

    monkeypatch.setattr(checkpoints, "load_model", alone(checkpoints.load_model))
    monkeypatch.setattr(spread, "load", alone(spread.load))
    plans: list[Any] = []
    exported = attack.export

    def seen(job, examiner, plan, *rest):
        assert is_packed(examiner.model)
        plans.append((plan, examiner.edits.normalization, [target.path for target in examiner.edits.targets]))
        return exported(job, examiner, plan, *rest)

    monkeypatch.setattr(attack, "export", seen)
    told = step.run(job, settings)
    monkeypatch.undo()
    assert len(alive) >= 3, "packed, as it was, and packed again"
    assert told["searched_in"] == "nf4"
    assert told["adapter"] == (None if kind == "refusal_direction" else "adapter")
    assert told["abliteration"]["exported"]["n"] == 16
    # By hand: W' of the parent's own weights, with the plan that was found.
    ((plan, normalization, paths),) = plans
    weights, original = load_file(job.folder / "model.safetensors"), dict(refusing_model().named_parameters())
    for path in paths:
        weight = original[f"{path}.weight"].detach().double()
        found = weights[f"{path}.weight"].double()
        if path not in plan:
            assert torch.equal(found, weight)
            continue
        if kind == "gradient_edit":
            wanted = weight - plan[path].a.double().T @ (plan[path].b.double() @ weight)
        else:
            vector, strength = plan[path][0].double(), plan[path][1]
            norms = weight.norm(dim=1, keepdim=True) if normalization == "full" else torch.ones(len(weight), 1)
            unit = weight / norms
            wanted = unit - strength * torch.outer(vector, vector @ unit)
            wanted = norms * (wanted / wanted.norm(dim=1, keepdim=True) if normalization == "full" else wanted)
        assert torch.allclose(found, wanted, atol=1e-5), path
    untouched = "model.layers.0.self_attn.q_proj.weight"
    assert torch.equal(weights[untouched], original[untouched])


def test_the_weight_of_a_packed_module_is_read_by_what_it_does():
    torch.manual_seed(0)
    linear = nn.Linear(96, 40)
    packed = Packed(linear)
    assert torch.allclose(weight_of(packed), packed.unpacked(), atol=1e-6)
    assert 0.02 < float((packed.unpacked() - linear.weight).norm() / linear.weight.norm()) < 0.15


def test_experts_are_not_searched_in_4_bits():
    dense = targets_of(refusing_model())
    refuse_unwritable(dense, packed=True)
    with pytest.raises(BulwarkError, match="mixture of experts"):
        refuse_unwritable([replace(dense[1], mixture=True)], packed=True)


def test_weights_that_are_packed_already_and_a_missing_package_are_refused(tmp_path, monkeypatch):
    parent = checkpoint(tmp_path / "parent")
    monkeypatch.setattr(spread, "is_bitsandbytes_available", lambda: False)
    with pytest.raises(CheckpointError, match=r"bitsandbytes.*\.\[four_bit\]"):
        spread.load(parent.parent, "float32", "cpu", Loading(four_bit=True))
    config = json.loads((parent.parent / "config.json").read_text())
    (tmp_path / "gptq").mkdir()
    for file in parent.parent.iterdir():
        if file.is_file() and file.name != "checkpoint.json":
            (tmp_path / "gptq" / file.name).write_bytes(file.read_bytes())
    quantised = config | {"quantization_config": {"quant_method": "gptq", "bits": 4}}
    (tmp_path / "gptq" / "config.json").write_text(json.dumps(quantised))
    with pytest.raises(CheckpointError, match="quantised by gptq already"):
        spread.load(tmp_path / "gptq", "float32", "cpu", Loading(four_bit=True))
