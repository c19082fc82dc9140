"""Greedy coordinate gradient, GCG (Zou et al. 2023, arXiv 2307.15043, Alg. 1): a text that makes a target likely.

The loss of adversarial tokens is the mean cross-entropy of the target's tokens behind the prompt. An iteration

1. takes the gradient of the loss with respect to the one-hot vectors of the adversarial tokens: <∂L/∂x_i, E_r(v)> with
   x_i the embedded vector at place i and E_r(v) the row of token v as it is embedded in the role r of that place;
2. draws single substitutions among the k tokens with the largest negative gradient at each place;
3. drops those that no text gives (see `suffixes`), measures the loss of the others and takes the best.

Alg. 1 draws with replacement; here every substitution is drawn at most once, and one that is dropped is replaced by
another, so that `search_width` of them are measured as long as there are so many.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bulwark.attacks.adaptive import SuffixAttacker
from bulwark.attacks.settings import AdaptiveGcgSettings, GcgSettings
from bulwark.attacks.suffixes import Case, Written, allowed_tokens
from bulwark.errors import BulwarkError
from bulwark.models.batching import NOT_NUMBERS, in_batches, padded, pass_token_budget

if TYPE_CHECKING:
    from bulwark.data.records import Turn
    from bulwark.models.open import LanguageModel

Together = Callable[[int], int]
"""Given this process's number of passes, the number that all processes make (where weights are sharded)."""


class Gcg:
    """GCG on one model. The cases hold all state, so that an attack goes on with other weights or in another process.

    model: a causal LM, or an engine around one. candidates: ids that may be written, see `allowed_tokens`. seed: the
    draws of a case's iteration depend on it, on the case's number and on the iteration, and on nothing else.
    token_budget: rows times longest row of a batch. together: see `Together`.
    """

    def __init__(
        self,
        model: nn.Module,
        settings: GcgSettings,
        candidates: Tensor,
        *,
        pad_id: int,
        seed: int = 0,
        token_budget: int | None = None,
        together: Together | None = None,
    ) -> None:
        # Not through an engine itself, which allows no backward pass but its own.
        self.model: nn.Module = getattr(model, "module", model)
        self.settings, self.seed, self._pad_id = settings, seed, pad_id
        self.embedding: nn.Embedding = self.model.get_input_embeddings()
        self.vocabulary = self.embedding.num_embeddings
        self.device = torch.device(getattr(model, "device", self.embedding.weight.device))
        self.candidates = candidates.to(self.device)
        self._budget = token_budget or pass_token_budget(self.device)
        self._together = together

    @classmethod
    def of(cls, language_model: LanguageModel, settings: GcgSettings, seed: int = 0) -> Gcg:
        """On an open model, whose tokenizer says which tokens may be written."""
        builder = language_model.builder
        allowed = allowed_tokens(language_model.tokenizer, builder.vocabulary, settings.allow_non_ascii)
        return cls(language_model.model, settings, allowed, pad_id=builder.pad_id, seed=seed)

    def attack(
        self, language_model: LanguageModel, prompts: Sequence[tuple[Sequence[Turn], str]], number: int = -1
    ) -> list[Case]:
        """Attack each (turns, target) by itself for `settings.steps` iterations; `Case.best` is the outcome.

        number: of the turn that the adversarial text is appended to.
        """
        cases = [
            Case([Written(language_model.builder, turns, target, self.settings.suffix, number)], place)
            for place, (turns, target) in enumerate(prompts)
        ]
        self.run(cases, self.settings.steps)
        return cases

    def run(self, cases: Sequence[Case], steps: int) -> None:
        """Improve all cases by `steps` iterations, together."""
        for _ in range(steps):
            self.step(cases)

    def step(self, cases: Sequence[Case]) -> None:
        """One iteration of Alg. 1 for every case."""
        present, gradients = self.gradients(cases)
        proposed = [self._proposals(case, gradient) for case, gradient in zip(cases, gradients, strict=True)]
        rows = [
            (row.filled(tokens, self.vocabulary), row.target)
            for case, proposals in zip(cases, proposed, strict=True)
            for tokens in proposals
            for row in case.rows
        ]
        losses, start = self.losses(rows), 0
        for case, proposals, before in zip(cases, proposed, present, strict=True):
            case.steps += 1
            if case.loss is None:
                _remember(case, case.tokens, before)
            size = len(proposals) * len(case.rows)
            own = losses[start : start + size].reshape(len(proposals), len(case.rows)).mean(1)
            start += size
            found = int(own.argmin()) if len(proposals) else None
            if found is None or (self.settings.keep_best and float(own[found]) >= before):
                case.loss = before
                continue
            case.tokens, case.loss = proposals[found], float(own[found])
            _remember(case, case.tokens, case.loss)

    def loss_of(self, cases: Sequence[Case]) -> list[float]:
        """The loss of each case's present tokens."""
        rows = [(row.filled(case.tokens, self.vocabulary), row.target) for case in cases for row in case.rows]
        losses = self.losses(rows).split([len(case.rows) for case in cases])
        return [float(part.mean()) for part in losses]

    def gradients(self, cases: Sequence[Case]) -> tuple[list[float], list[Tensor]]:
        """Each case's loss, and its gradient [places, candidates] with respect to the one-hot vectors of the tokens."""
        rows = [(case, row) for case in cases for row in case.rows]
        filled = [row.filled(case.tokens, self.vocabulary) for case, row in rows]
        losses, at_places = torch.zeros(len(rows), dtype=torch.float64), [torch.empty(0)] * len(rows)

        def work(batch: list[int]) -> None:
            with torch.enable_grad(), _watched(self.embedding) as embedded:
                found = self._row_losses([filled[n] for n in batch], [rows[n][1].target for n in batch])
                (gradient,) = torch.autograd.grad(found.sum(), embedded)
            losses[batch] = found.detach().double().cpu()
            for place, number in enumerate(batch):
                at_places[number] = gradient[place, list(rows[number][1].places)].detach()

        self._passes(filled, work)
        roles = [[filled[n][place] // self.vocabulary for place in row.places] for n, (_, row) in enumerate(rows)]
        known = sorted({role for own in roles for role in own}) or [0]
        ids = torch.stack([self.candidates + role * self.vocabulary for role in known])
        with torch.no_grad():
            embedded = self.embedding(ids)  # one call, so that sharded weights are gathered once
            by_row = [
                torch.stack([embedded[known.index(role)] @ vector for role, vector in zip(own, vectors, strict=True)])
                for own, vectors in zip(roles, at_places, strict=True)
            ]
        sizes = [len(case.rows) for case in cases]
        starts = np.cumsum([0, *sizes])[:-1]
        gradients = [torch.stack(by_row[s : s + size]).mean(0) for s, size in zip(starts, sizes, strict=True)]
        return [float(part.mean()) for part in losses.split(sizes)], gradients

    @torch.no_grad()
    def losses(self, rows: Sequence[tuple[list[int], int]]) -> Tensor:
        """The loss of each row (ids, tokens of the target), float64 [rows] on the CPU.

        Raises BulwarkError for logits that are not numbers.
        """
        losses = torch.zeros(len(rows), dtype=torch.float64)

        def work(batch: list[int]) -> None:
            losses[batch] = self._row_losses([rows[n][0] for n in batch], [rows[n][1] for n in batch]).double().cpu()

        self._passes([ids for ids, _ in rows], work)
        if losses.isnan().any():
            raise BulwarkError(NOT_NUMBERS)
        return losses

    def _passes(self, rows: Sequence[Sequence[int]], work: Callable[[list[int]], None]) -> None:
        """Give all rows to `work` in batches; where weights are sharded, as many as the busiest process has."""
        lengths = [len(row) for row in rows]
        more = 0
        if self._together is not None:
            order, own, done = sorted(lengths, reverse=True), 0, 0
            while done < len(order):
                done += max(1, self._budget // order[done])
                own += 1
            more = self._together(own) - own
        in_batches(lengths, work, self._budget, lambda n: f"adversarial prompt of {lengths[n]} tokens")
        for _ in range(more):
            self._idle(work, rows)

    def _idle(self, work: Callable[[list[int]], None], rows: Sequence[Sequence[int]]) -> None:
        """A pass without use. Repeats the first row; without any row a single padding token."""
        if rows:
            work([0])
        else:
            self._row_losses([[self._pad_id, self._pad_id]], [1])

    def _row_losses(self, rows: Sequence[Sequence[int]], targets: Sequence[int]) -> Tensor:
        """Mean cross-entropy [rows] of the last `targets` tokens of each row."""
        ids = padded(rows, self._pad_id)
        ends, sizes = torch.tensor([len(row) for row in rows]), torch.tensor(targets)
        kept = torch.arange(int((ends - sizes).min()) - 1, int(ends.max()) - 1)
        mask = (kept >= (ends - sizes - 1)[:, None]) & (kept < (ends - 1)[:, None])
        wanted, mask = (ids[:, kept + 1] % self.vocabulary).to(self.device), mask.to(self.device)
        logits = self.model(input_ids=ids.to(self.device), use_cache=False, logits_to_keep=kept.to(self.device)).logits
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        each = F.cross_entropy(wide.transpose(1, 2), wanted, reduction="none")
        return (each * mask).sum(1) / sizes.to(self.device)

    def _proposals(self, case: Case, gradient: Tensor) -> list[list[int]]:
        """Up to `search_width` different token lists, each with one token exchanged, that a text gives."""
        present = torch.tensor(case.tokens, device=self.device)
        gradient = gradient.float().masked_fill(self.candidates == present[:, None], torch.inf)
        top = min(self.settings.top_k, gradient.shape[1])
        best = (-gradient).topk(top, dim=1)
        chosen, worth = self.candidates[best.indices].tolist(), best.values.isfinite().tolist()
        draw = np.random.default_rng([self.seed, case.number, case.steps])
        proposals: list[list[int]] = []
        for pair in draw.permutation(len(case.tokens) * top).tolist():
            place, rank = divmod(pair, top)
            if not worth[place][rank]:
                continue
            tokens = case.tokens.copy()
            tokens[place] = chosen[place][rank]
            case.drawn += 1
            if case.holds(tokens):
                proposals.append(tokens)
            else:
                case.refused += 1
            if len(proposals) == self.settings.search_width:
                break
        return proposals


def attacker(language_model: LanguageModel, settings: AdaptiveGcgSettings, seed: int) -> SuffixAttacker:
    """GCG against injected commands on this model."""
    return SuffixAttacker(Gcg.of(language_model, settings, seed), language_model.builder, settings.suffix)


def _remember(case: Case, tokens: list[int], loss: float) -> None:
    if loss < case.best_loss:
        case.best, case.best_loss = list(tokens), loss


@contextmanager
def _watched(embedding: nn.Module):
    """Within it, the embedding's output is a leaf whose gradient can be taken: the one tensor in the list."""
    seen: list[Tensor] = []

    def leaf(_: nn.Module, __: tuple, output: Tensor) -> Tensor:
        seen.append(output.detach().requires_grad_())
        return seen[-1]

    hook = embedding.register_forward_hook(leaf)
    try:
        yield seen
    finally:
        hook.remove()
