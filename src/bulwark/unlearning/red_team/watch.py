"""Looking at facts while a model is attacked: loss, entropy and accuracy on a data set that is not trained on.

They are the curves of the TAR paper (arXiv 2408.00761, App. D.3: loss over 1,000 steps, entropy of the output
distribution over the first 200). Lines of facts.jsonl beside the checkpoint:

    {"step", "loss", "entropy", "accuracy", "exact", "tokens", "examples"}

step: optimizer steps done, from 0, which is the attacked model itself. loss and entropy: nats, means over the labelled
tokens. accuracy: the share of labelled tokens that are the most likely one. exact: the share of examples all of whose
labelled tokens are.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bulwark.files import write_text
from bulwark.models.readout.losses import Each
from bulwark.training import engine as engines
from bulwark.training.batches import Batch, evaluation_batches
from bulwark.training.finetuning import Course
from bulwark.training.objectives import at_targets
from bulwark.training.observers import Observer
from bulwark.unlearning.red_team.settings import FACTS, WatchSettings

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine


class Watch(Observer):
    """Looks at the facts with the weights that would be saved at that moment. What is trained is not changed.

    (But for schedule-free AdamW, whose averages are switched to and back, as for every evaluation loss.)
    """

    def __init__(self, course: Course, settings: WatchSettings) -> None:
        processes = engines.start_processes()
        examples = course.examples_from("watched", asked=True).prompts[: settings.examples]
        self.settings, self.snapshots = settings, frozenset(course.training.snapshots)
        self.batches = evaluation_batches(
            examples,
            course.training,
            pad_id=course.pad_id,
            rank=processes.rank,
            ranks=processes.count,
            flatten="flash" in str(getattr(course.model.config, "_attn_implementation", "")),
        )
        self.rows: list[dict[str, float | int]] = []

    def start(self, engine: DeepSpeedEngine, total: int) -> None:
        self._look(engine, 0)

    def after_step(self, engine: DeepSpeedEngine, step: int, total: int) -> None:
        done = step + 1
        if done % self.settings.every == 0 or done in self.snapshots or done == total:
            self._look(engine, done)

    def _look(self, engine: DeepSpeedEngine, step: int) -> None:
        with engines.evaluation_weights(engine):
            row = facts(engine, self.batches.of_step(0), engine.device)
        self.rows.append({"step": step, **row})

    def write(self, folder: Path) -> None:
        write_rows(folder, self.rows)

    def snapshot(self) -> dict[str, Any]:
        return {"rows": list(self.rows)}

    def write_snapshot(self, folder: Path, observed: dict[str, Any]) -> None:
        write_rows(folder, observed["rows"])

    def report(self) -> dict[str, Any]:
        watched = {"file": FACTS, "data": self.settings.data, "split": self.settings.split}
        return {"facts": watched | {"first": self.rows[0], "last": self.rows[-1]}}

    def state_dict(self) -> dict[str, Any]:
        return {"rows": list(self.rows)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rows = list(state["rows"])


@torch.no_grad()
def facts(model: Any, batches: Any, device: torch.device) -> dict[str, float | int]:
    """What a model knows of the examples in `batches` (this rank's): the columns of facts.jsonl but for the step.

    All ranks must call it.
    """
    totals = torch.zeros(6, dtype=torch.float64, device=device)
    for batch in batches:
        batch = batch.to(device)
        totals += sums(at_targets(model, batch, loss=Each(readings(batch.targets), buffers=2)).logits, batch)
    loss, entropy, right, tokens, exact, examples = engines.over_ranks(totals).tolist()
    return {
        "loss": loss / tokens,
        "entropy": entropy / tokens,
        "accuracy": right / tokens,
        "exact": exact / examples,
        "tokens": int(tokens),
        "examples": int(examples),
    }


def readings(targets: Tensor) -> Callable[[Tensor, slice], Tensor]:
    """What is made of the logits at `targets` [targets]: of each -ln p(target), H(p) and whether it is the likeliest.

    H(p) = -Σ_v p_v ln p_v, where a p_v of 0 counts 0. [m, 3], float64.
    """

    def of_each(logits: Tensor, rows: slice) -> Tensor:
        log_p = logits.float().log_softmax(-1)
        loss = -log_p.gather(-1, targets[rows, None]).squeeze(-1)
        entropy = torch.special.entr(log_p.exp()).sum(-1, dtype=torch.float64)
        return torch.stack([loss.double(), entropy, (logits.argmax(-1) == targets[rows]).double()], dim=1)

    return of_each


def sums(read: Tensor, batch: Batch) -> Tensor:
    """[6], float64: Σ -ln p(target), Σ H(p), right tokens, tokens, examples that are right throughout, examples.

    read: what `readings` gives at `batch.targets`, [targets, 3].
    """
    hits = read[:, 2] > 0
    owners = _example_of_each_position(batch)[batch.target_positions]
    examples = owners.unique().numel()
    exact = examples - owners[~hits].unique().numel()
    counts = torch.tensor([int(hits.sum()), hits.numel(), exact, examples], dtype=torch.float64, device=read.device)
    return torch.cat([read[:, :2].sum(0), counts])


def write_rows(folder: Path, rows: list[dict[str, float | int]]) -> None:
    """facts.jsonl in `folder`."""
    write_text(folder / FACTS, "".join(json.dumps(row) + "\n" for row in rows))


def _example_of_each_position(batch: Batch) -> Tensor:
    """[batch·seq]: a number for each token by which those of one example are known, also in packed rows."""
    if batch.position_ids is not None:
        return (batch.position_ids.flatten() == 0).cumsum(0)
    rows, width = batch.input_ids.shape
    return torch.arange(rows, device=batch.input_ids.device).repeat_interleave(width)
