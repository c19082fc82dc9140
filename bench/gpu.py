"""What a GPU does at the size of Llama 3.1 8B: a training step, answers, a trial of a search, each beside its floor.

Random weights in bfloat16; nothing is downloaded. Needs torch, transformers and this project. `python -m bench.gpu`;
without a GPU it says what it would measure. `--shape tiny --device cpu` goes through the same code in a few seconds,
where the numbers mean nothing.

    matmul          FLOP/s of a square product in the model's number type: the rate that floors in FLOPs assume
    copy            bytes/s that a copy reads and writes: the rate that floors in bytes assume
    training step   forward, backward and a plain gradient step (a batch of whole rows, blocks recomputed); MFU is
                    6·parameters·tokens + attention over the time, against the matmul rate; recomputation is not counted
    generation      answers that end at different tokens; each pass reads all weights once
    trial           one edit of all o_proj and down_proj: prompts read, answers written
"""

from __future__ import annotations

import argparse
import logging
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from bench.generation import STOPS
from bench.timing import Ratio, ratio
from bench.trials import Words, plan_of, prompts_of, subject_of
from bulwark.abliteration.edit.hooks import Edits
from bulwark.abliteration.edit.targets import targets_of
from bulwark.abliteration.search.trials import Examiner
from bulwark.abliteration.settings import ObjectiveSettings, SearchSettings
from bulwark.jobs.memory import SHAPES, Shape
from bulwark.models import generation
from bulwark.models.batching import padded
from bulwark.models.decoding import Decoding
from bulwark.models.embeddings import install
from bulwark.prompts.builder import Prompt
from bulwark.steering.screening.detectors import Detector
from bulwark.steering.screening.policies import DeltaLoss
from bulwark.steering.settings import InterventionSettings
from bulwark.training.batches import Batch, StepBatches
from bulwark.training.objectives import next_token_loss


@dataclass(frozen=True)
class Work:
    """A model, and the work that it is given. square: rows of the matrices whose product is timed."""

    shape: Shape
    rows: int
    length: int
    prompts: int
    new_tokens: int
    square: int
    rounds: int


TINY = Shape("tiny", layers=4, hidden=32, inner=64, heads=4, shared=2, size=8, vocabulary=300)
WORKS = {
    "llama-3.1-8b": Work(SHAPES["8B"], 2, 4096, 64, 128, 8192, 5),
    "tiny": Work(TINY, 2, 32, 6, 8, 64, 2),
}


def run() -> Iterator[Ratio]:
    """The full shape on a GPU; without one, what would be measured is printed."""
    if not torch.cuda.is_available():
        print(f"No GPU, so nothing is measured. What would be:\n\n{__doc__}")
        return
    yield from measured(WORKS["llama-3.1-8b"], torch.device("cuda"))


def measured(work: Work, device: torch.device) -> Iterator[Ratio]:
    """Ratios, and times over their floors."""
    logging.disable(logging.WARNING)
    model = _model(work, device)
    rates = Rates.of(work, device, model.dtype)
    yield rates.told("matmul: 10¹² FLOP/s", rates.flops / 1e12)
    yield rates.told("copy: 10⁹ bytes/s", rates.bytes / 1e9)
    yield from _training(model, work, rates)
    yield from _generation(model, work, rates)
    yield from _trial(model, work, rates)


@dataclass(frozen=True)
class Rates:
    """What the device reaches in a product of matrices and in a copy, per second."""

    flops: float
    bytes: float
    device: torch.device

    @classmethod
    def of(cls, work: Work, device: torch.device, dtype: torch.dtype) -> Rates:
        a, b = (torch.randn(work.square, work.square, device=device).to(dtype) for _ in range(2))
        source = torch.zeros(work.square**2, dtype=dtype, device=device)
        target = torch.empty_like(source)
        product = min(clock(lambda: a @ b, device) for _ in range(10))
        copied = min(clock(lambda: target.copy_(source), device) for _ in range(10))
        return cls(2 * work.square**3 / product, 2 * source.nbytes / copied, device)

    def floors(self, flops: float, read: float) -> str:
        """The least seconds that so many FLOPs and so many bytes read can take."""
        return f"floors: {flops:.3g} FLOPs {flops / self.flops:.3g} s, {read:.3g} bytes {read / self.bytes:.3g} s"

    def told(self, what: str, value: float, *others: float) -> Ratio:
        """A number by itself, or the median of several."""
        values = [value, *others]
        return Ratio(f"{what} ({self.device.type})", statistics.median(values), min(values), max(values))


def clock(work: Callable[[], object], device: torch.device) -> float:
    """Seconds until the device has done a piece of work."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    started = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - started


# --- training ---


def _training(model: LlamaForCausalLM, work: Work, rates: Rates) -> Iterator[Ratio]:
    embeddings = {method: install(model, {"method": method}) for method in ("aside", "vanilla")}
    batch = _batch(work).to(rates.device)
    detector = Detector(model, work.shape.layers * 3 // 4, torch.ones(work.shape.hidden))
    policy = DeltaLoss(
        InterventionSettings(alpha=0.1), mode="mask", granularity="sample", strategy="mean", threshold=-1e9
    )

    def stepped(method: str, loss: Callable[[], Tensor]) -> Callable[[], None]:
        def work() -> None:
            model.set_input_embeddings(embeddings[method])
            loss().backward()
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.grad is not None:
                        parameter.add_(parameter.grad, alpha=-1e-4)
                        parameter.grad = None

        return work

    def screened() -> Tensor:
        verdict = policy.judge(detector, batch, 0.1)
        return torch.where(verdict.kept, verdict.losses, 0.0).sum() / batch.step_tokens

    plain = stepped("vanilla", lambda: next_token_loss(model, batch))
    aside = stepped("aside", lambda: next_token_loss(model, batch))
    delta = stepped("vanilla", screened)
    model.train()
    model.activation_checkpointing_enable({"use_reentrant": False})
    tokens = work.rows * work.length
    flops = 6 * _used(model) * tokens
    flops += 6 * work.shape.layers * work.shape.hidden * tokens * work.length  # causal attention
    read = 3 * 2 * sum(weights.nbytes for weights in model.parameters())  # forward, recomputed, backward; gradients
    timed = [clock(plain, rates.device) for _ in range(work.rounds + 1)][1:]
    told = f"training step, {tokens} tokens, {statistics.median(timed):.3g} s, {rates.floors(flops, read)}: MFU"
    yield rates.told(told, *(flops / seconds / rates.flops for seconds in timed))
    timing = {"rounds": work.rounds, "clock": lambda work: clock(work, rates.device)}
    yield ratio("training step: aside / vanilla", aside, plain, "≤ 1.03", **timing)
    yield ratio("training step: delta-loss (mask) / plain", delta, plain, "≤ 1.15", **timing)
    model.set_input_embeddings(embeddings["vanilla"])
    model.activation_checkpointing_disable()
    model.eval()


def _batch(work: Work) -> Batch:
    """Rows of one length, 60 % of them data, the last fifth is learned."""
    vocabulary, draw = work.shape.vocabulary, torch.Generator().manual_seed(0)
    drawn = torch.randint(13, vocabulary, (work.rows, work.length), generator=draw)
    roles = [1] * (work.length // 5) + [2] * (work.length * 3 // 5)
    roles += [0] * (work.length - len(roles))
    examples = [
        Prompt(
            [token + vocabulary * role for token, role in zip(row, roles, strict=True)],
            [-100 if role else token for token, role in zip(row, roles, strict=True)],
            *(roles, [], "", False),
        )
        for row in drawn.tolist()
    ]
    [batch] = StepBatches(examples, batch_size=work.rows, micro_batch_size=work.rows, pad_id=0).of_step(0)
    return batch


# --- generation ---


def _generation(model: LlamaForCausalLM, work: Work, rates: Rates) -> Iterator[Ratio]:
    draw = torch.Generator().manual_seed(1)
    lengths = torch.randint(work.length // 16 + 4, work.length // 8 + 6, (work.prompts,), generator=draw).tolist()
    prompts = [torch.randint(13, work.shape.vocabulary, (length,), generator=draw).tolist() for length in lengths]
    asked = [(str(number), Prompt(row, None, [0] * len(row), [], "", False)) for number, row in enumerate(prompts)]
    budget = work.prompts * (max(lengths) + work.new_tokens)
    longest_first = sorted(prompts, key=len, reverse=True)
    written: dict[str, list[int]] = {}

    def ours() -> None:
        generation.generate(
            model, asked, Decoding(max_new_tokens=work.new_tokens), tokenizer=Words(), stop_ids=STOPS, pad_id=0,
            token_budget=budget, ids=written,
        )  # fmt: skip

    def theirs() -> None:
        ids = padded(longest_first, 0, left=True)
        mask = padded([[1] * len(row) for row in longest_first], 0, left=True)
        model.generate(
            input_ids=ids.to(rates.device), attention_mask=mask.to(rates.device), max_new_tokens=work.new_tokens,
            do_sample=False, eos_token_id=STOPS, pad_token_id=0,
        )  # fmt: skip

    def continuous() -> None:
        model.generate_batch(
            inputs=prompts,
            generation_config=GenerationConfig(
                max_new_tokens=work.new_tokens, do_sample=False, eos_token_id=STOPS, pad_token_id=0
            ),
        )

    timing = {"rounds": work.rounds, "clock": lambda work: clock(work, rates.device)}
    seconds = [clock(ours, rates.device) for _ in range(work.rounds + 1)][1:]
    tokens = sum(lengths) + sum(map(len, written.values()))
    passes = 1 + max(map(len, written.values()))
    read = passes * _read(model)
    told = f"generation, {work.prompts} prompts, {rates.floors(2 * _used(model) * tokens, read)}: seconds"
    yield rates.told(told, *seconds)
    yield ratio("generation: `generate`, one batch / ours", theirs, ours, "> 1", **timing)
    if rates.device.type == "cuda":  # on a CPU it takes half of the machine's memory for its cache
        yield ratio("generation: continuous batching of transformers / ours", continuous, ours, "> 1", **timing)


# --- a trial ---


def _trial(model: LlamaForCausalLM, work: Work, rates: Rates) -> Iterator[Ratio]:
    prompts = prompts_of(work.shape.vocabulary, work.prompts)
    edits = Edits(targets_of(model))
    search = SearchSettings(max_new_tokens=work.new_tokens)
    examiner = Examiner(subject_of(model), edits, prompts, search, ObjectiveSettings(), seed=0)
    plan = plan_of(model, edits, 0)
    seconds = [clock(lambda: examiner.examine([plan]), rates.device) for _ in range(work.rounds + 1)][1:]
    tokens = sum(len(prompt.ids) for prompt in (*prompts.harmful_search, *prompts.harmless_search))
    tokens += work.prompts * work.new_tokens
    read = (2 + work.new_tokens) * _read(model)
    told = f"abliteration trial, {2 * work.prompts} prompts, {rates.floors(2 * _used(model) * tokens, read)}: seconds"
    yield rates.told(told, *seconds)


# --- the model ---


def _model(work: Work, device: torch.device) -> LlamaForCausalLM:
    config = LlamaConfig(**work.shape.llama, max_position_embeddings=2 * work.length)
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16 if device.type == "cuda" else torch.float32)
    try:
        with device:
            model = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
    install(model, {"method": "vanilla"})
    return model.eval()


def _used(model: nn.Module) -> int:
    """Parameters that are multiplied with every token: all but the input embedding."""
    return sum(p.numel() for p in model.parameters()) - model.get_input_embeddings().weight.numel()


def _read(model: nn.Module) -> int:
    """Bytes of weights that every pass reads."""
    return _used(model) * model.dtype.itemsize


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__.partition("\n")[0])
    parser.add_argument("--shape", choices=WORKS, default="llama-3.1-8b")
    parser.add_argument("--device", default="cuda")
    options: Any = parser.parse_args(given)
    device = torch.device(options.device)
    found = run() if device.type == "cuda" and not torch.cuda.is_available() else measured(WORKS[options.shape], device)
    for result in found:
        print(f"{result.what}: {result.median:.3g} ({result.low:.3g} … {result.high:.3g}) {result.wanted}", flush=True)


if __name__ == "__main__":
    main()
