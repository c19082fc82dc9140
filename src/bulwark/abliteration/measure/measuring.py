"""What an edit is measured by at the first token: log-probabilities, KL divergence, log-odds of refusing.

One prefill per prompt and no generation. KL(base ‖ edited) in nats over the whole vocabulary at the first generated
position, from raw logits in float32: processed scores hold -inf for suppressed tokens, which gives NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from bulwark.abliteration.edit.hooks import Edits, Plan, Rows
from bulwark.models.batching import Batch, over_prompts
from bulwark.prompts.builder import Prompt

_LEAST_ODDS = 1e-8  # Arditi et al. (arXiv 2406.11717), the authors' code
_ANSWER_TOKENS = 2**11  # of a batch whose logits are kept at all places


def first_token_log_probabilities(
    model: nn.Module, prompts: Sequence[Prompt], pad_id: int, *, token_budget: int | None = None
) -> Tensor:
    """log p(first response token | prompt), [prompts, vocabulary] in float32 on the CPU, in the given order.

    Raises BulwarkError when memory does not suffice for one prompt.
    """
    title = "log-probabilities"
    return by_trial(model, prompts, 1, None, lambda _, logs: logs, pad_id, token_budget=token_budget, title=title)[0]


def by_trial(
    model: nn.Module,
    prompts: Sequence[Prompt],
    trials: int,
    rows: Rows | None,
    value: Callable[[list[int], Tensor], Tensor],
    pad_id: int,
    *,
    token_budget: int | None = None,
    title: str,
) -> Tensor:
    """A value for every prompt under every trial of an edited model, [trials, prompts, ...], on the CPU.

    value(numbers of a batch's prompts, log-probabilities [trials, batch, vocabulary]) → [trials, batch, ...]. rows: of
    the edited model; None for one that is not edited.
    """
    parts: dict[int, Tensor] = {}

    def work(batch: Batch) -> None:
        count = len(batch.places)
        if rows is not None:
            rows.are(torch.arange(trials).repeat_interleave(count))
        many = Batch(batch.places * trials, batch.ids.repeat(trials, 1), batch.last.repeat(trials))
        values = value(batch.places, log_probabilities_of(model, many).unflatten(0, (trials, count)))
        parts.update(zip(batch.places, values.cpu().unbind(1), strict=True))

    over_prompts(prompts, work, pad_id, model.device, token_budget=token_budget, copies=trials, title=title)
    return torch.stack([parts[place] for place in range(len(prompts))], dim=1)


@torch.inference_mode()
def log_probabilities_of(model: nn.Module, batch: Batch) -> Tensor:
    """log-probabilities of the token after each row's last one, [rows, vocabulary], float32, on the model's device."""
    columns = batch.last.unique()
    logits = model(input_ids=batch.ids, use_cache=False, logits_to_keep=columns).logits
    at = torch.searchsorted(columns, batch.last)
    return logits[torch.arange(len(at), device=logits.device), at].float().log_softmax(-1)


def answer_divergence(
    model: nn.Module, edits: Edits, plan: Plan, prompts: Sequence[Prompt], starts: Sequence[int], pad_id: int
) -> float:
    """KL(base ‖ edited) per token of given answers, in nats: what an edit does to more than the first token.

    prompts: with the answers at their ends. starts: [prompts], where each answer begins. 0 if all answers are empty.
    """
    total, count = 0.0, 0

    def work(batch: Batch) -> None:
        nonlocal total, count
        at = predicting([starts[place] for place in batch.places], batch.last, batch.ids.shape[1])
        with torch.inference_mode():
            base = model(input_ids=batch.ids, use_cache=False).logits[at].float().log_softmax(-1)
            with edits.on([plan]) as rows:
                rows.are(torch.zeros(len(batch.places), dtype=torch.long))
                edited = model(input_ids=batch.ids, use_cache=False).logits[at].float().log_softmax(-1)
        total += float(kl_divergence(base, edited).double().sum())
        count += int(at.sum())

    over_prompts(prompts, work, pad_id, model.device, token_budget=_ANSWER_TOKENS, title="answer")
    return total / max(1, count)


def predicting(starts: Sequence[int], last: Tensor, width: int) -> Tensor:
    """The places that predict a row's answer, [rows, width]: from the one before it begins to the one before its end.

    last: [rows], where each row ends.
    """
    places = torch.arange(width, device=last.device)
    begins = torch.tensor(starts, device=last.device)[:, None] - 1
    return (places >= begins) & (places < last[:, None])


def kl_divergence(reference: Tensor, edited: Tensor) -> Tensor:
    """KL(reference ‖ edited) of rows of log-probabilities [..., vocabulary], in nats: Σ p (log p - log q).

    What the reference gives no probability counts nothing. Rounding can leave a value a little below 0.
    """
    terms = reference.exp() * (reference - edited)
    return torch.where(reference == -torch.inf, torch.zeros_like(terms), terms).sum(-1)


def refusal_score(log_probabilities: Tensor, refusal_tokens: Sequence[int]) -> Tensor:
    """Log-odds that the first token begins a refusal, [...]: log p_R - log(1 - p_R), p_R the mass of `refusal_tokens`.

    Arditi et al. 2024 (arXiv 2406.11717), Sec. 2 and App. C, with their ε = 1e-8 in both logarithms.
    """
    mass = log_probabilities[..., list(refusal_tokens)].double().exp().sum(-1).clamp(max=1.0)
    return (mass + _LEAST_ODDS).log() - (1 - mass + _LEAST_ODDS).log()
