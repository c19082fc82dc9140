"""R2D2, robust refusal dynamic defense (Mazeika et al. 2024, HarmBench, arXiv 2402.04249, Sec. 5 and Alg. 1).

Adversarial training against GCG with persistent test cases: a pool of harmful requests, each with an adversarial suffix
and the answer that an attacker wants. In every optimizer step some cases are drawn, GCG improves their suffixes on the
present weights by a few iterations, and then

    L = sft·L_SFT + away·L_away + toward·L_toward

with L_away the mean of -log(1 - p) over the tokens of the wanted answers, and L_toward the cross-entropy of a refusal
to the same prompts. Now and then a share of the pool begins anew.

All ranks know the whole pool: each improves its part of the drawn cases, and tells the others.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from bulwark.attacks.gcg import Gcg
from bulwark.attacks.suffixes import Case, Written, allowed_tokens
from bulwark.data.records import Preference, Turn, read_records
from bulwark.errors import ConfigurationError, RecordError
from bulwark.models.readout.losses import Each
from bulwark.prompts.builder import IGNORED, Prompt, PromptError
from bulwark.training import engine as engines
from bulwark.training.batches import Batch, StepBatches
from bulwark.training.finetuning import Course
from bulwark.training.objectives import Objective, next_token_loss, summed
from bulwark.unlearning.curves import Curves
from bulwark.unlearning.losses import min_posterior

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

    from bulwark.unlearning.immunisation.settings import AdversarialTrainingSettings


class AdversarialTraining(Objective):
    """The loss above, over a pool that lives as long as the training.

    The cases' micro-batches come at the step's first micro-batch, behind its own loss (as in `ForgetRetain`).
    Raises RecordError where no record of the pool can be attacked.
    """

    def __init__(self, course: Course, settings: AdversarialTrainingSettings) -> None:
        self.course, self.settings = course, settings
        self.records = read_records(course.job.inputs["cases"], Preference)
        self.pool, self.refusals, self.left_out = self._filled()
        self.resets = 0
        self._curves = Curves("sft", "away", "toward", "attack")
        self._parts: list[tuple[str, Batch]] = []

    def start(self, engine: DeepSpeedEngine, total: int) -> None:
        builder = self.course.builder
        sharded = engine.zero_optimization_partition_weights()
        self._gcg = Gcg(
            engine,
            self.settings.gcg,
            allowed_tokens(builder.tokenizer, builder.vocabulary, self.settings.gcg.allow_non_ascii),
            pad_id=builder.pad_id,
            seed=self.course.job.seed,
            together=(lambda own: _largest(engine, own)) if sharded else None,
        )

    def before_step(self, engine: DeepSpeedEngine, step: int, total: int) -> None:
        self._curves.begin(engine.device)
        settings, seed = self.settings, self.course.job.seed
        if step and step % settings.reset_every == 0:
            drawn = np.random.default_rng([seed, step, 1])
            for number in drawn.choice(len(self.pool), round(settings.reset_share * len(self.pool)), replace=False):
                self.pool[number].tokens, self.pool[number].loss = list(self.pool[number].written[0].tokens), None
                self.resets += 1
        size = min(settings.cases_per_step, len(self.pool))
        chosen = np.random.default_rng([seed, step]).choice(len(self.pool), size, replace=False).tolist()
        self._improve(engine, chosen)
        self._parts = [(name, batch) for name in ("away", "toward") for batch in self._batches(name, chosen)]

    def backward(self, engine: DeepSpeedEngine, batch: Batch) -> Tensor:
        parts, self._parts = self._parts, []
        last = engine.is_gradient_accumulation_boundary()
        engine.set_gradient_accumulation_boundary(last and not parts)
        loss = self.settings.sft_weight * next_token_loss(engine, batch)
        engines.backward(engine, loss)
        self._curves.add("sft", loss)
        total = loss.detach()
        for number, (name, part) in enumerate(parts, start=1):
            engine.set_gradient_accumulation_boundary(last and number == len(parts))
            share = self.share(engine, name, part.to(engine.device))
            engines.backward(engine, share)
            self._curves.add(name, share)
            total = total + share.detach()
        return total

    def share(self, engine: DeepSpeedEngine, name: str, batch: Batch) -> Tensor:
        """This micro-batch's share of the weighted "away" or "toward" loss."""
        if name == "toward":
            return self.settings.toward_weight * next_token_loss(engine, batch)
        threshold = self.settings.away_threshold
        of_each = Each(lambda logits, rows: min_posterior(logits, batch.targets[rows], threshold))
        return self.settings.away_weight * summed(engine, batch, of_each, max(1, batch.step_tokens))

    def metrics(self) -> dict[str, float]:
        return self._curves.latest("r2d2")

    def report(self) -> dict[str, Any]:
        """Losses over the steps, weighted; "attack" is GCG's own loss after the iterations, a mean over the cases."""
        drawn, refused = (sum(getattr(case, name) for case in self.pool) for name in ("drawn", "refused"))
        return {
            "adversarial_training": {
                "records": len(self.records),
                "left_out": self.left_out,
                "cases": len(self.pool),
                "resets": self.resets,
                "substitutions": drawn,
                "without_a_text": refused,
                "losses": self._curves.report(),
            }
        }

    def state_dict(self) -> dict[str, Any]:
        pool = [case.state() for case in self.pool]
        return {"pool": pool, "resets": self.resets, "curves": self._curves.state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for case, kept in zip(self.pool, state["pool"], strict=True):
            case.restore(kept)
        self.resets = state["resets"]
        self._curves.restore(state["curves"])

    def _filled(self) -> tuple[list[Case], list[str], int]:
        """The pool, the refusal that each case is moved towards, and how many records cannot be attacked."""
        builder, settings = self.course.builder, self.settings
        order = np.random.default_rng([self.course.job.seed, 2]).permutation(len(self.records)).tolist()
        usable: list[tuple[Written, str]] = []
        problem: Exception | None = None
        left_out = 0
        for number in order:
            record = self.records[number]
            target = _beginning(builder.tokenizer, record.rejected, settings.target_tokens)
            try:
                written = Written(builder, record.turns, target, settings.gcg.suffix)
            except (ConfigurationError, PromptError) as error:
                left_out, problem = left_out + 1, error
                continue
            usable.append((written, settings.refusal or record.chosen))
            if len(usable) == settings.pool:
                break
        if not usable:
            raise RecordError(f"{self.course.job.inputs['cases']}: no record can be attacked. The last one: {problem}")
        pool = [Case([usable[n % len(usable)][0]], n) for n in range(settings.pool)]
        return pool, [usable[n % len(usable)][1] for n in range(settings.pool)], left_out

    def _improve(self, engine: DeepSpeedEngine, chosen: list[int]) -> None:
        """GCG's iterations on this rank's part of the chosen cases; afterwards all ranks know all of them."""
        rank, ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()
        own = [self.pool[number] for number in chosen[rank::ranks]]
        mode = engine.training
        engine.eval()
        self._gcg.run(own, self.settings.gcg.steps)
        engine.train(mode)
        width = max(len(self.pool[number].tokens) for number in chosen)
        numbers = torch.zeros(len(chosen), width + 3, dtype=torch.int64)
        losses = torch.zeros(len(chosen), dtype=torch.float64)
        for row in range(rank, len(chosen), ranks):
            case = self.pool[chosen[row]]
            told = [case.steps, case.drawn, case.refused, *case.tokens]
            numbers[row, : len(told)], losses[row] = torch.tensor(told), case.loss
            self._curves.add("attack", case.loss / len(chosen))
        numbers, losses = (engines.over_ranks(part.to(engine.device)).cpu() for part in (numbers, losses))
        for number, told, loss in zip(chosen, numbers.tolist(), losses.tolist(), strict=True):
            case = self.pool[number]
            case.steps, case.drawn, case.refused = told[:3]
            case.tokens, case.loss = told[3 : 3 + len(case.tokens)], loss

    def _batches(self, name: str, chosen: list[int]) -> Iterator[Batch]:
        """This rank's micro-batches of the chosen cases with the wanted answers ("away") or the refusals ("toward")."""
        rank, ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()
        prompts = [self._wanted(number) if name == "away" else self._refused(number) for number in chosen]
        return StepBatches(
            prompts,
            batch_size=len(prompts),
            micro_batch_size=self.settings.case_micro_batch_size or -(-len(prompts) // ranks),
            pad_id=self.course.pad_id,
            rank=rank,
            ranks=ranks,
            group_by_length=False,
        ).of_step(0)

    def _wanted(self, number: int) -> Prompt:
        case = self.pool[number]
        row, vocabulary = case.rows[0], self.course.builder.vocabulary
        ids = row.filled(case.tokens, vocabulary)
        labels = [IGNORED] * (len(ids) - row.target) + [token % vocabulary for token in ids[-row.target :]]
        return Prompt(ids, labels, [token // vocabulary for token in ids], [], "", False)

    def _refused(self, number: int) -> Prompt:
        case = self.pool[number]
        turns = [*case.written[0].turns(case.tokens), Turn(role="response", text=self.refusals[number])]
        return self.course.builder.example(turns)


def _largest(engine: DeepSpeedEngine, own: int) -> int:
    return int(engines.over_ranks(torch.tensor(own, device=engine.device), largest=True))


def _beginning(tokenizer: Any, text: str, most: int | None) -> str:
    """The text of the first `most` tokens of `text`."""
    if most is None:
        return text
    ends = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    return text[: ends[most - 1][1]] if len(ends) > most else text
