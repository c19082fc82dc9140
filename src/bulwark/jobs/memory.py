"""What a job holds on each GPU, computed from a model's shape, and so on how many GPUs it fits. Torch-free.

Bytes of weights, gradients and optimizer state follow from what DeepSpeed keeps (`training/engine.py`); activations
from what autograd saves of a Llama-like block; both are measured by `python -m bench memory`, which prints them beside
what is computed here. `python -m bulwark.jobs.memory` prints the table of docs/memory.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from bulwark.models.placing.loading import FOUR_BIT, GB, Attention, places

Purpose = Literal["full training", "LoRA training", "4-bit search", "answering"]
PURPOSES: tuple[Purpose, ...] = ("full training", "LoRA training", "4-bit search", "answering")
CARDS = (24, 48, 80, 141)
NODE = 8  # GPUs; a model that answers lies on one node
PASSING = 3 * GB  # what a plan leaves beside weights for a pass and its keys and values, where it knows no shape

USABLE = 0.92  # of a card's memory: the rest is the driver's context, NCCL's buffers and what fragments
HALF, SINGLE = 2, 4  # bytes
ADAMW = 12  # bytes per parameter: master weight and two moments in float32
GATHERED = 2 * GB  # ZeRO-3: DeepSpeed's max_live_parameters, 10⁹, in half precision
BUCKET = HALF * 5 * 10**8  # DeepSpeed's reduce bucket, 5·10⁸ gradients in half precision
CHUNK = 2**28 * (HALF + 3 * SINGLE)  # a chunk of logits on a GPU (`models/readout/chunks.py`), with what is made of it


@dataclass(frozen=True)
class Shape:
    """A decoder of Llama's kind, as its config.json has it. heads, shared: of queries, and of keys and values."""

    name: str
    layers: int
    hidden: int
    inner: int
    heads: int
    shared: int
    size: int
    vocabulary: int
    tied: bool = False

    @property
    def llama(self) -> dict[str, int | bool]:
        """What transformers' LlamaConfig is told to have a model of this shape."""
        return {
            "vocab_size": self.vocabulary,
            "hidden_size": self.hidden,
            "intermediate_size": self.inner,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.shared,
            "head_dim": self.size,
            "tie_word_embeddings": self.tied,
        }

    @property
    def linear(self) -> int:
        """Parameters of the linear modules of all blocks."""
        attention = 2 * self.hidden * self.size * (self.heads + self.shared)
        return self.layers * (attention + 3 * self.hidden * self.inner)

    @property
    def embeddings(self) -> int:
        return self.vocabulary * self.hidden * (1 if self.tied else 2)

    @property
    def parameters(self) -> int:
        """All but the few of norms and biases."""
        return self.linear + self.embeddings

    @property
    def cached(self) -> int:
        """Bytes of keys and values per token."""
        return 2 * self.layers * self.shared * self.size * HALF

    @property
    def block(self) -> int:
        """Bytes per token that a block keeps for its backward pass, in half precision, with attention that is not
        written out (sdpa, flash).

        Of each norm its input in float32, its root, and the result twice; queries and keys after rotation, values, the
        attention's result and, of each head, its normaliser; four tensors of the gated MLP.
        """
        norms = 2 * (SINGLE * self.hidden + SINGLE + 2 * HALF * self.hidden)
        attention = 2 * HALF * self.size * (self.heads + self.shared) + SINGLE * self.heads
        return norms + attention + 4 * HALF * self.inner

    def eager(self, tokens: int, pairs: int) -> int:
        """Bytes that a block keeps more where attention is written out, as `Load.pairs` counts them; 0 without pairs.

        Of each pair of tokens the softmax in float32 and in half precision; of each token keys and values repeated for
        all heads, and no normaliser.
        """
        repeated = 2 * HALF * self.size * (self.heads - self.shared) - SINGLE * self.heads
        return (SINGLE + HALF) * self.heads * pairs + repeated * tokens if pairs else 0

    def adapters(self, rank: int) -> int:
        """Parameters of LoRA adapters on all linear modules of the blocks."""
        width, narrow = self.size * self.heads, self.size * self.shared
        attention = 2 * (self.hidden + width) + 2 * (self.hidden + narrow)
        return self.layers * rank * (attention + 3 * (self.hidden + self.inner))


SHAPES = {
    "7B": Shape("Qwen2.5-7B", 28, 3584, 18944, 28, 4, 128, 152064),
    "8B": Shape("Llama-3.1-8B", 32, 4096, 14336, 32, 8, 128, 128256),
    "13B": Shape("Llama-2-13b", 40, 5120, 13824, 40, 40, 128, 32000),
    "32B": Shape("Qwen2.5-32B", 64, 5120, 27648, 40, 8, 128, 152064),
    "70B": Shape("Llama-3.1-70B", 80, 8192, 28672, 64, 8, 128, 128256),
}


@dataclass(frozen=True)
class Load:
    """What goes through the model at once on a GPU. tokens: of a micro-batch, all of them learned. checkpointing: of
    gradients. rank: of LoRA adapters. cached: tokens of a batch of answers, prompts included. attention: as in
    config/models/; of "eager" length, the tokens of a row."""

    tokens: int = 8192
    checkpointing: bool = True
    rank: int = 16
    cached: int = 32768
    attention: Attention = "sdpa"
    length: int = 2048

    def pairs(self, tokens: int) -> int:
        """Pairs of tokens for which attention weights are there at once."""
        return tokens * self.length if self.attention == "eager" else 0


def bytes_of(shape: Shape, purpose: Purpose, gpus: int, load: Load | None = None) -> float:
    """Bytes on each of `gpus` GPUs.

    Trainings are in bfloat16 with AdamW under ZeRO-3, on one GPU under ZeRO-1. A search or an answering job has the
    blocks spread over the GPUs, and the embeddings on the first of them (`models/placing/loading.py`).
    """
    load = load or Load()
    if purpose in ("4-bit search", "answering"):
        block = shape.linear * (HALF if purpose == "answering" else FOUR_BIT) / shape.layers
        outside = HALF * shape.embeddings
        on = places([block] * shape.layers, outside, gpus)
        kept_there = block + load.cached * shape.cached / shape.layers
        held = [kept_there * on.count(gpu) + (outside if gpu == 0 else 0) for gpu in range(gpus)]
        return max(held) + _passing(shape, load)  # what a pass is working on lies on each
    trained = shape.parameters if purpose == "full training" else shape.adapters(load.rank)
    weights = HALF * shape.parameters + (0 if purpose == "full training" else HALF * trained)
    if gpus == 1:
        state = weights + trained * (HALF + SINGLE + ADAMW) + min(BUCKET, HALF * trained)
    else:
        state = (weights + trained * (SINGLE + ADAMW)) / gpus + min(GATHERED, HALF * shape.parameters)
        state += 2 * min(BUCKET, HALF * trained)  # one is filled while the other is reduced
    # The output embedding's gradient is there in float32 while chunks are added to it.
    head = SINGLE * shape.vocabulary * shape.hidden if purpose == "full training" else 0
    pairs = load.pairs(load.tokens)
    passes = activations(shape, load.tokens, load.checkpointing, pairs)
    return state + passes + logits(shape, load.tokens) + head


def kept(shape: Shape, tokens: int, checkpointing: bool, pairs: int = 0) -> float:
    """Bytes that a forward pass of so many tokens keeps for the backward pass: of the blocks, and of the last norm.

    pairs: of tokens, whose attention is written out.
    """
    of_block = HALF * shape.hidden * tokens if checkpointing else shape.block * tokens + shape.eager(tokens, pairs)
    return shape.layers * of_block + tokens * (SINGLE + HALF) * shape.hidden


def activations(shape: Shape, tokens: int, checkpointing: bool, pairs: int = 0) -> float:
    """The most that is there of a pass: what is kept, a block that is computed again, and the gradients in it."""
    block = tokens * shape.block + shape.eager(tokens, pairs)
    return kept(shape, tokens, checkpointing, pairs) + block * (2 if checkpointing else 1)


def logits(shape: Shape, targets: int) -> float:
    """Bytes that the loss of so many targets takes: a chunk of logits, and the gradient of their hidden states."""
    return min(CHUNK, targets * shape.vocabulary * (HALF + 3 * SINGLE)) + 2 * targets * HALF * shape.hidden


def gpus_for(shape: Shape, purpose: Purpose, card: int, load: Load | None = None, most: int = 64) -> int | None:
    """The fewest GPUs of `card` GB on which it fits; of a training 1, 2, 4, 8, or whole nodes of 8. None for more than
    `most`, or than a node has where no training is spread over several."""
    counts = _counts(most) if "training" in purpose else range(1, min(most, NODE) + 1)
    for gpus in counts:
        if bytes_of(shape, purpose, gpus, load) <= USABLE * card * GB:
            return gpus
    return None


def gpus_of_weights(weights: float, card: float) -> int:
    """On how many GPUs of `card` bytes so many bytes of weights lie, with a little room for a pass."""
    return math.ceil(weights / (USABLE * card - PASSING))


def table(load: Load | None = None) -> list[list[str]]:
    """Rows of what fits where: model, purpose, and the GPUs by card; the first row are the headings."""
    rows = [["model", "purpose", *(f"{card} GB" for card in CARDS)]]
    for size, shape in SHAPES.items():
        for purpose in PURPOSES:
            counts = [gpus_for(shape, purpose, card, load) for card in CARDS]
            none = f"more than {64 if 'training' in purpose else NODE}"
            rows.append([f"{size} ({shape.name})", purpose, *(none if n is None else str(n) for n in counts)])
    return rows


def _passing(shape: Shape, load: Load) -> float:
    """Bytes that a forward pass without gradients is working on at once: a block's, and a part of the logits."""
    tokens = min(load.tokens, load.cached)
    written_out = shape.eager(tokens, load.pairs(tokens))
    return tokens * 2 * HALF * (2 * shape.hidden + 2 * shape.inner) + written_out + GB


def _counts(most: int) -> Iterator[int]:
    yield from (1, 2, 4)
    yield from range(8, most + 1, 8)


def main() -> None:
    """Print the table in Markdown."""
    head, *rows = table()
    print("| " + " | ".join(head) + " |")
    print("|---|---|" + "---:|" * len(CARDS))
    for row in rows:
        print("| " + " | ".join(row) + " |")


if __name__ == "__main__":
    main()
