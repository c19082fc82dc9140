"""Changes of weights without training: what an adversary can do to a model in seconds.

Each function is a formula on tensors; `rewritten` carries one of them from the parent of a job to its checkpoint. All
compute in float32 and cast once to the dtype in which the parent is stored. Matrices are the parameters of the decoder
blocks with at least two dimensions: embeddings, norm weights and biases stay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from bulwark.errors import BulwarkError
from bulwark.models import checkpoints, manifests
from bulwark.models.anatomy import blocks_of
from bulwark.models.embeddings import role_embedding_of
from bulwark.models.folders.carried import carry_on
from bulwark.steering import embedded

if TYPE_CHECKING:
    from bulwark.jobs.job import Job

Format = Literal["int8", "nf4"]
_OVERSAMPLED, _SVD_ITERATIONS = 4, 6  # of a randomised decomposition, beside twice the rank


@torch.no_grad()
def rewritten(job: Job, change: Callable[[nn.Module], dict[str, Any]]) -> dict[str, Any]:
    """Let `change` edit the parent's model in place, save it in the folder of `job`; returns what the manifest records.

    change: gets the model on the CPU in its stored dtype, and returns what is recorded of it.
    """
    _, folder, template = manifests.open_manifest(job.parent)
    model = checkpoints.load_model(folder, dtype="auto")
    tokenizer = checkpoints.load_tokenizer(folder)
    changed = change(model)
    names = carry_on(job.parent, job.folder)
    checkpoints.save_model(model, tokenizer, job.folder)
    embedded.pass_on(folder, job.folder)
    return {"template": template, "carried": names, "changed": changed}


def matrices(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """The matrices of the decoder blocks with their names: "3.mlp.up_proj.weight" is in the fourth block."""
    for name, parameter in blocks_of(model).named_parameters():
        if parameter.dim() >= 2:
            yield name, parameter


def interpolate(parent: Tensor, other: Tensor, weight: float, rank: int | None = None) -> Tensor:
    """parent + weight · (other - parent), in the parent's dtype: the parent at 0, the other at 1, both exactly.

    Arithmetic of task vectors (Ilharco et al. 2023, arXiv 2212.04089, Sec. 2); below 0 and above 1 it extrapolates.
    rank: of a matrix only so many leading singular directions of the difference count, and of a vector nothing: what
    fine-tuning of low rank could have added.
    """
    if rank is None:
        return torch.lerp(parent.float(), other.float(), weight).to(parent.dtype)
    if parent.dim() != 2:
        return parent
    difference = other.float() - parent.float()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        size = min(2 * rank + _OVERSAMPLED, *difference.shape)
        u, s, v = torch.svd_lowrank(difference, q=size, niter=_SVD_ITERATIONS)
    return (parent.float() + weight * (u[:, :rank] * s[:rank]) @ v[:, :rank].T).to(parent.dtype)


def interpolate_models(model: nn.Module, other: nn.Module, weight: float, rank: int | None = None) -> int:
    """`interpolate` every parameter of `model` in place; returns how many there are.

    Raises BulwarkError for models of different form: parameters, shapes, or role embeddings.
    """
    theirs = dict(other.named_parameters())
    ours = dict(model.named_parameters())
    methods = [f"{each.method} ({', '.join(each.roles)})" for each in map(role_embedding_of, (model, other))]
    if methods[0] != methods[1]:
        raise BulwarkError(f"The parent has the role embedding {methods[0]}, the other model {methods[1]}.")
    for name in ours.keys() ^ theirs.keys():
        raise BulwarkError(f"Only one of the two models has the weight {name}; models of one form can be interpolated.")
    for name, parameter in ours.items():
        if parameter.shape != theirs[name].shape:
            raise BulwarkError(
                f"{name} has the shape {list(parameter.shape)} in the parent and {list(theirs[name].shape)} in the "
                "other model; models of one form can be interpolated."
            )
        parameter.copy_(interpolate(parameter, theirs[name], weight, rank))
    return len(ours)


def prune(weight: Tensor, fraction: float) -> Tensor:
    """The weight with its smallest ⌊fraction · n⌋ of n entries by magnitude set to 0 (Han et al. 2015, Sec. 3)."""
    count = int(fraction * weight.numel() + 1e-9)
    flat = weight.flatten().clone()
    flat[flat.abs().float().argsort(stable=True)[:count]] = 0
    return flat.view_as(weight)


def quantise(weight: Tensor, form: Format, block: int | None) -> Tensor:
    """The weight rounded to the nearest level of its block, and scaled back.

    int8: levels -127/127 … 127/127. nf4: the 16 levels of `nf4_levels`. Each is multiplied by the largest magnitude of
    its block: `block` entries of the weight laid out row by row, or a row (an output) if None.
    """
    rows = weight.float().reshape(-1, weight.shape[-1] if block is None else 1)
    if block is not None:
        flat = weight.float().flatten()
        rows = nn.functional.pad(flat, (0, -len(flat) % block)).view(-1, block)
    scale = rows.abs().amax(dim=1, keepdim=True)
    scaled = rows / scale.where(scale > 0, 1.0)
    if form == "int8":
        nearest = (scaled * 127).round() / 127
    else:
        levels = torch.tensor(nf4_levels(), device=weight.device)
        nearest = levels[torch.bucketize(scaled, (levels[1:] + levels[:-1]) / 2)]
    return (nearest * scale).flatten()[: weight.numel()].view_as(weight).to(weight.dtype)


def nf4_levels() -> list[float]:
    """The 16 levels of 4-bit NormalFloat, rising from -1 to 1 (Dettmers et al. 2023, arXiv 2305.14314, App. E).

    Quantiles of the normal distribution: eight above 0 and seven below it, evenly spaced in probability between 1/2
    and 1 - (1/32 + 1/30) / 2, and 0, divided by the largest.
    """
    last = 1 - (1 / 32 + 1 / 30) / 2
    above, below = ([NormalDist().inv_cdf(0.5 + (last - 0.5) * k / n) for k in range(1, n + 1)] for n in (8, 7))
    return sorted(level / above[-1] for level in (*above, 0.0, *(-level for level in below)))


def perturb(weight: Tensor, scale: float, generator: torch.Generator) -> Tensor:
    """The weight plus normal noise, `scale` times as large as the weight's own root mean square."""
    noise = torch.randn(weight.shape, generator=generator)
    values = weight.float()
    return (values + scale * values.square().mean().sqrt() * noise).to(weight.dtype)


def reinitialise(model: nn.Module, output_embedding: bool, last_blocks: int, seed: int) -> list[str]:
    """Draw weights anew, in place, as the model's own class does before it is trained; returns the parts' names.

    Raises BulwarkError for an output embedding that shares its weight with the input's, and for too many blocks.
    """
    blocks = blocks_of(model)
    if last_blocks > len(blocks):
        raise BulwarkError(f"last_blocks: the model has {len(blocks)} decoder blocks, not {last_blocks}.")
    head = model.get_output_embeddings()
    if output_embedding and head.weight is model.get_input_embeddings().weight:
        raise BulwarkError(
            "output_embedding: this model's output embedding is its input embedding, which would be lost as well. "
            "Set output_embedding: false, and last_blocks instead."
        )
    first = len(blocks) - last_blocks
    parts = {f"block {first + number + 1}": block for number, block in enumerate(blocks[first:])}
    parts |= {"output embedding": head} if output_embedding else {}
    torch.manual_seed(seed)
    for part in parts.values():
        for parameter in part.parameters():
            parameter._is_hf_initialized = False  # transformers leaves alone what it has read from a file
        for module in part.modules():
            model._init_weights(module)
    return list(parts)
