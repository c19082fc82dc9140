"""Batched answers: length-sorted, within a token budget, resumable by record.

Prompts are answered longest first, so that a batch wastes little on padding and memory runs out at the start if it
ever does; the budget is then halved and the same records are tried again. Every finished answer is appended to a
partial file, so a killed job continues where it stopped. An answer depends on its prompt, the decoding settings, the
seed and the record's key, not on the other records: greedily the same for every batch size (in float32), and
sampled by numbers that belong to the record.
"""

from __future__ import annotations

import gc
import hashlib
import json
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from bulwark.errors import BulwarkError
from bulwark.models.decoding import Decoding
from bulwark.prompts.builder import Prompt

log = logging.getLogger(__name__)

CPU_TOKEN_BUDGET = 2**14
MOST_TOKENS = 2**20
_SECONDS_BETWEEN_LOG_LINES = 30


@dataclass(frozen=True)
class Answer:
    """What a model said to the prompt `id`.

    tokens: generated tokens, the stop token included; finish: "stop" if there was one; truncated: the prompt was cut.
    """

    id: str
    response: str
    tokens: int
    finish: Literal["stop", "length"]
    truncated: bool

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def generate(
    model,
    prompts: Sequence[tuple[str, Prompt]],
    decoding: Decoding,
    *,
    tokenizer,
    stop_ids: Sequence[int],
    pad_id: int,
    seed: int = 0,
    partial: Path | None = None,
    fingerprint: str = "",
    token_budget: int | None = None,
) -> list[Answer]:
    """Answer every (key, prompt), in the given order.

    model: a causal LM whose input embedding is a RoleEmbedding; generation options of its own are not used.
    stop_ids, pad_id: of the prompt builder. seed: for sampling. token_budget: rows times (longest prompt + new
    tokens) of a batch; None asks the device's free memory. partial: where finished answers are kept; those of a
    file with another `fingerprint` (what decides the answers besides prompts, decoding, seed and stop ids: the
    checkpoint's digest, the number type) are discarded. The caller removes the file once its own output is written.

    Raises BulwarkError for duplicate keys, prompts above `max_prompt_tokens`, logits that are not numbers, and when
    memory does not suffice for a single record.
    """
    _check(prompts, decoding)
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i][1].ids))
    settled = json.dumps([fingerprint, decoding.model_dump(), seed, list(stop_ids)])
    kept = Partial(partial, hashlib.sha256(settled.encode()).hexdigest())
    answers = {
        key: kept.answers[key, _digest(prompt)] for key, prompt in prompts if (key, _digest(prompt)) in kept.answers
    }
    pending = [prompts[i] for i in order if prompts[i][0] not in answers]
    if answers:
        log.info("%d of %d answers are there already", len(answers), len(prompts))
    with _quiet(model), progress(len(prompts), len(answers)) as advance, kept:
        budget = (token_budget or default_token_budget(model)) if pending else 0
        while pending:
            width = len(pending[0][1].ids) + decoding.max_new_tokens
            rows = max(1, min(budget // width, len(pending)))
            batch = pending[:rows]
            responses = _attempt(model, batch, decoding, stop_ids, pad_id, seed)
            if responses is None:
                if rows == 1:
                    raise BulwarkError(
                        f'Out of memory with the single prompt "{batch[0][0]}" of {len(batch[0][1].ids)} tokens and up '
                        f"to {decoding.max_new_tokens} new ones. Lower max_prompt_tokens or max_new_tokens, use "
                        "bfloat16, or a device with more memory."
                    )
                budget = rows * width // 2
                log.warning("Out of memory with %d rows; the token budget is now %d", rows, budget)
                free_memory()
                continue
            for (key, prompt), ids in zip(batch, responses, strict=True):
                answers[key] = _answer(key, prompt, ids, stop_ids, tokenizer)
                kept.append(answers[key], _digest(prompt))
            kept.flush()
            del pending[:rows]
            advance(rows)
    return [answers[key] for key, _ in prompts]


def default_token_budget(model) -> int:
    """Tokens whose keys and values fill two thirds of the free device memory; a fixed number on CPU."""
    if model.device.type != "cuda":
        return CPU_TOKEN_BUDGET
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    bytes_per_token = 2 * config.num_hidden_layers * heads * size * model.dtype.itemsize
    free, _ = torch.cuda.mem_get_info(model.device)
    return max(1, min(MOST_TOKENS, int(free * 2 / 3 / bytes_per_token)))


def _attempt(
    model,
    batch: Sequence[tuple[str, Prompt]],
    decoding: Decoding,
    stop_ids: Sequence[int],
    pad_id: int,
    seed: int,
) -> list[list[int]] | None:
    """Generated ids per row, padding included; None if memory ran out."""
    length = max(len(prompt.ids) for _, prompt in batch)
    input_ids = torch.full((len(batch), length), pad_id, dtype=torch.long)
    mask = torch.zeros_like(input_ids)
    for row, (_, prompt) in enumerate(batch):
        input_ids[row, length - len(prompt.ids) :] = torch.tensor(prompt.ids)
        mask[row, length - len(prompt.ids) :] = 1
    processors = LogitsProcessorList([_RefuseNaN()])
    if decoding.do_sample:
        processors.append(_Sampler(decoding, [key for key, _ in batch], seed, length, model.device))
    settings = GenerationConfig(
        max_new_tokens=decoding.max_new_tokens,
        do_sample=False,  # the sampler leaves one token to choose from
        num_beams=1,
        use_cache=True,
        eos_token_id=list(stop_ids),
        pad_token_id=pad_id,
    )
    try:
        with torch.inference_mode():
            sequences = model.generate(
                input_ids=input_ids.to(model.device),
                attention_mask=mask.to(model.device),
                generation_config=settings,
                logits_processor=processors,
            )
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return None
    return sequences[:, length:].tolist()


def _answer(key: str, prompt: Prompt, ids: list[int], stop_ids: Sequence[int], tokenizer) -> Answer:
    end = next((i for i, token in enumerate(ids) if token in stop_ids), None)
    text = tokenizer.decode(ids[:end], skip_special_tokens=True, clean_up_tokenization_spaces=False)
    tokens = len(ids) if end is None else end + 1
    return Answer(key, text.strip(), tokens, "length" if end is None else "stop", prompt.truncated)


class _RefuseNaN(LogitsProcessor):
    """Greedy choice among NaNs would silently be token 0."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if torch.isnan(scores).any():
            raise BulwarkError(
                "The model's logits are not numbers (NaN). Its weights are broken, or the number type overflows: "
                "try bfloat16 or float32."
            )
        return scores


class _Sampler(LogitsProcessor):
    """Chooses the token in which a uniform number falls that depends on seed, record key and step alone.

    The distribution is softmax(logits / temperature), cut to the smallest set of tokens with mass `top_p`.
    """

    def __init__(self, decoding: Decoding, keys: list[str], seed: int, prompt_length: int, device: torch.device):
        self._temperature, self._top_p, self._prompt_length = decoding.temperature, decoding.top_p, prompt_length
        rows = [self._numbers(seed, key, decoding.max_new_tokens) for key in keys]
        self._uniform = torch.stack(rows).to(device)  # [rows, new tokens]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        probabilities = torch.softmax(scores.float() / self._temperature, dim=-1)
        if self._top_p < 1:
            ordered, places = probabilities.sort(dim=-1, descending=True, stable=True)
            tail = ordered.cumsum(-1) - ordered >= self._top_p
            probabilities = probabilities.masked_fill(tail.gather(-1, places.argsort(-1)), 0)
        reached = probabilities.double().cumsum(-1)
        drawn = self._uniform[:, input_ids.shape[1] - self._prompt_length, None] * reached[:, -1:]
        chosen = torch.searchsorted(reached, drawn, right=True).clamp(max=scores.shape[1] - 1)
        return torch.full_like(scores, -torch.inf).scatter(1, chosen, 0)

    @staticmethod
    def _numbers(seed: int, key: str, count: int) -> torch.Tensor:
        digest = hashlib.sha256(f"{seed}\n{key}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big", signed=True))
        return torch.rand(count, generator=generator, dtype=torch.float64)


class Partial:
    """Finished answers on disk: a line with the fingerprint, then one line per answer, appended as they come."""

    def __init__(self, path: Path | None, fingerprint: str):
        self._path = path
        self._fingerprint = fingerprint
        self._file = None
        self.answers: dict[tuple[str, str], Answer] = {}
        self._good_bytes = 0
        if path is not None and path.exists():
            self._read(path)

    def __enter__(self) -> Partial:
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("ab")
            self._file.truncate(self._good_bytes)
            if not self._good_bytes:
                self._write({"fingerprint": self._fingerprint})
        return self

    def __exit__(self, *_) -> None:
        if self._file is not None:
            self._file.close()

    def append(self, answer: Answer, prompt_digest: str) -> None:
        if self._file is not None:
            self._write({**answer.as_dict(), "prompt": prompt_digest})

    def flush(self) -> None:
        if self._file is not None:
            self._file.flush()

    def _write(self, row: dict[str, Any]) -> None:
        self._file.write((json.dumps(row) + "\n").encode())

    def _read(self, path: Path) -> None:
        """Take the whole lines of a file with our fingerprint; a line that was cut off ends it."""
        with path.open("rb") as file:
            for number, line in enumerate(file):
                row = _whole_row(line)
                if number == 0 and (row is None or row.get("fingerprint") != self._fingerprint):
                    log.warning("%s holds answers made under other settings; they are discarded", path)
                    return
                if row is None:
                    log.info("The last line of %s was cut off; its answer is generated again", path)
                    return
                if number:
                    prompt = row.pop("prompt")
                    self.answers[row["id"], prompt] = Answer(**row)
                self._good_bytes += len(line)


def _whole_row(line: bytes) -> dict[str, Any] | None:
    if not line.endswith(b"\n"):
        return None
    try:
        return json.loads(line)
    except ValueError:
        return None


@contextmanager
def _quiet(model) -> Iterator[None]:
    """Evaluation mode, and none of the generation options that came with the model's folder (penalties, top-k)."""
    training, options = model.training, model.generation_config
    model.eval()
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = options
        model.train(training)


@contextmanager
def progress(total: int, done: int, what: str = "answers", unit: str = "records") -> Iterator[Any]:
    """A bar with the rate (records/s) and the time left on a terminal; elsewhere a log line now and then."""
    console = Console(stderr=True)
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"))
    started = told = time.monotonic()
    finished = 0
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=total, completed=done, rate="")

        def advance(count: int) -> None:
            nonlocal finished, told
            finished += count
            now = time.monotonic()
            rate = finished / max(now - started, 1e-9)
            bar.update(task, advance=count, rate=f"{rate:.1f} {unit}/s")
            if not console.is_terminal and now - told >= _SECONDS_BETWEEN_LOG_LINES:
                told = now
                left = (total - done - finished) / rate
                log.info("%d of %d %s, %.1f %s/s, %.0f s left", done + finished, total, what, rate, unit, left)

        yield advance


def _check(prompts: Sequence[tuple[str, Prompt]], decoding: Decoding) -> None:
    keys = [key for key, _ in prompts]
    if len(set(keys)) < len(keys):
        twice = next(key for key in keys if keys.count(key) > 1)
        raise BulwarkError(f'Two prompts have the key "{twice}". Give every record its own id.')
    limit = decoding.max_prompt_tokens
    for key, prompt in prompts:
        if limit is not None and len(prompt.ids) > limit:
            raise BulwarkError(
                f'The prompt "{key}" has {len(prompt.ids)} tokens, above max_prompt_tokens = {limit}. '
                "Give the prompt builder max_tokens, so that it cuts the data."
            )


def _digest(prompt: Prompt) -> str:
    return hashlib.sha256(repr(prompt.ids).encode()).hexdigest()[:16]


def is_out_of_memory(error: RuntimeError) -> bool:
    text = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError) or "out of memory" in text or "can't allocate memory" in text


def free_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
