"""What is said of how weights are held, and which block goes onto which GPU. Imports nothing heavy: plans read it.

The blocks of a model are spread over the GPUs of a job, in their order; the embeddings and whatever else is no block
lie on the first one, so that prompts, logits and all that is made of them are on one device, as without spreading.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from bulwark.errors import BulwarkError

Attention = Literal["sdpa", "eager", "flash_attention_2"]
GB = 10**9
# Bytes per weight in NF4: in blocks of 64, their scales in 8 bits, those in blocks of 256 (QLoRA, Sec. 3)
FOUR_BIT = 0.5 + 1 / 64 + 4 / 16384
_HALVINGS = 60  # of the interval in which the fullest GPU's load is looked for


@dataclass(frozen=True)
class Loading:
    """How a model is loaded that answers or is attacked; config/models/ says it for the jobs of a model.

    attention: as in `training.settings`. gpus: over so many of this node its blocks are spread. gpu_gb: the most that
    weights may take of each, in GB, one number per GPU; None shares them evenly. four_bit: the linear modules of the
    blocks are packed in NF4 as they are read.
    """

    attention: Attention = "sdpa"
    gpus: int = 1
    gpu_gb: tuple[float, ...] | None = None
    four_bit: bool = False


def places(blocks: Sequence[float], outside: float, gpus: int, room: Sequence[float] | None = None) -> list[int]:
    """The GPU of each block, in order and from 0, so that the fullest GPU holds as little as it can.

    blocks: bytes of each. outside: bytes of all else, on GPU 0. room: bytes that each GPU has for weights, of which the
    fullest takes the smallest share then. Raises BulwarkError if they do not fit into it.
    """
    sizes = list(room) if room is not None else [1.0] * gpus
    if len(sizes) != gpus:
        raise BulwarkError(f"There are {gpus} GPUs, and {len(sizes)} numbers say how much room they have.")
    whole = outside + sum(blocks)
    low, high = 0.0, whole / min(sizes)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if _filled(blocks, outside, [middle * size for size in sizes]) else (middle, high)
    if room is not None and high > 1 + 1e-9:
        raise BulwarkError(
            f"{whole / GB:.0f} GB of weights do not fit into {', '.join(f'{size / GB:g}' for size in sizes)} GB on "
            f"{gpus} GPUs, block by block: {high:.2f} times as much room is needed. Give the model more GPUs "
            "(resources.generate.gpu in its file under config/models), or a search on it 4 bits (quantised: nf4)."
        )
    found = _filled(blocks, outside, [high * size for size in sizes])
    assert found is not None  # everything fits into the upper end of the interval
    return found


def _filled(blocks: Sequence[float], outside: float, room: Sequence[float]) -> list[int] | None:
    """Fill one GPU after the other; None if that leaves a block over."""
    found, gpu, taken = [], 0, outside
    if taken > room[0]:
        return None
    for size in blocks:
        while taken + size > room[gpu]:
            gpu, taken = gpu + 1, 0.0
            if gpu == len(room):
                return None
        found.append(gpu)
        taken += size
    return found
