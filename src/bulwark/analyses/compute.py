"""What a training cost: tokens, optimizer steps, parameters, floating point operations and seconds.

Read from the manifest of the checkpoint that the last step of a recipe made: for an attack it is what the attack costs,
not the defense before it. Of a snapshot (`relearn@25`) it is what the training had cost by then.

    tokens, target_tokens    read without padding, and those of them that were learned
    optimizer_steps          made
    parameters, trained      of the model, and those of them that were trained; adapters count as both
    flops                    tokens · (4 · frozen + 6 · trained)
    seconds                  of the training, on its machine, without loading

A parameter costs two operations per token forward, two for the gradient of its input and two for that of itself
(Kaplan et al. 2020, arXiv 2001.08361, Sec. 2.1: C ≈ 6 N D, without the attention over the context). One that is frozen
has no gradient of itself: 4 N + 6 n for n adapters on N weights. Where only the last layers are trained, no gradient
goes through those before them, and this counts too much. Of embeddings only the output's multiply, so small models are
counted too large.

These are the passes of the training loop: batch by batch, forward and backward once. What an objective passes beside
them (inner trajectories, a frozen reference) is not in it, and `seconds` is the measure that holds it.
None of it is better higher or lower. There are no rows: a training is one observation.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bulwark.analyses import Analysis
from bulwark.errors import RecordError
from bulwark.settings import Closed
from bulwark.training.finetuning import FineTuningSettings

METRICS: dict[str, bool | None] = dict.fromkeys(
    ("tokens", "target_tokens", "optimizer_steps", "parameters", "trained", "flops", "seconds")
)


class Settings(Closed):
    """Nothing can be set."""


def applies(settings: Closed) -> bool:
    return isinstance(settings, FineTuningSettings)


def analyse(manifest: Mapping[str, Any], folder: Path, settings: Settings) -> Analysis:
    """Raises RecordError if the manifest does not tell of a training."""
    report = manifest.get("training")
    if report is None:
        raise RecordError(f"{folder / 'checkpoint.json'}: tells of no training. Make it again with a step that trains.")
    whole, trained, tokens = (report[key] for key in ("parameters", "trainable_parameters", "tokens"))
    values = {
        "tokens": tokens,
        "target_tokens": report["target_tokens"],
        "optimizer_steps": report["steps"],
        "parameters": whole,
        "trained": trained,
        "flops": flops(tokens, whole - trained, trained),
        "seconds": report["seconds"],
    }
    return Analysis({name: (value, 1) for name, value in values.items()}, [])


def flops(tokens: int, frozen: int, trained: int) -> int:
    """Floating point operations of a training on so many tokens, by its numbers of parameters; see above."""
    return tokens * (4 * frozen + 6 * trained)
