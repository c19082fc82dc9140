"""One checkpoint on all benchmarks of the miniature's studies against the bare forward passes of the same evaluation.

Each benchmark is answered by the function that a job runs (`bulwark.evaluation.answer.answer`), over a few records of
the miniature and by a random Llama of 50 million parameters with the miniature's tokenizer, so that a pass is
arithmetic and not Python. Every call of the model is recorded, and the same calls are made again with nothing between
them: same rows, same lengths, same cache. The two take turns, and CPU seconds are counted. What is done once per job
however many records there are belongs to neither, and is told apart: opening the checkpoint, and noting versions and
commit.

Left out are benchmarks that read what other jobs make (vectors, projections), and the attackers who adapt, whose cost
is their budget. References to other checkpoints lead to the same one.
"""

from __future__ import annotations

import functools
import inspect
import logging
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from bench.processes import elsewhere, memory
from bench.timing import Ratio
from bulwark.benchmarks import benchmark_of
from bulwark.config import loading, overlays, plan
from bulwark.config.catalogue import Catalogue
from bulwark.config.sources import schema_of
from bulwark.data import readers
from bulwark.data.records import write_records
from bulwark.evaluation import answer as answering
from bulwark.evaluation.answer import answer
from bulwark.miniature.records import write as write_miniature
from bulwark.miniature.settings import MiniatureSettings
from bulwark.miniature.tokenizer import build_tokenizer
from bulwark.models import batching, checkpoints, manifests
from bulwark.models import open as opening
from bulwark.models.embeddings import install
from bulwark.models.generation import _select_rows

CONFIG = Path(__file__).parents[1] / "config"
HIDDEN, LAYERS, POSITIONS = 640, 10, 256
PROMPTS, ROUNDS = 8, 3  # of a benchmark, but one record at least
TEXTS = 40  # that a probe is trained on
MEMORY_RECORDS, MEMORY_TOKENS = 128, 1024  # of a data set, and of a batch
MODEL, RECIPE, SEED = "miniature", "base", "0"


def run() -> Iterator[Ratio]:
    """Evaluation / bare passes, of all benchmarks and of each; peak memory by records and by the size of a batch."""
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = _checkpoint(folder)
        with mock.patch.object(checkpoints, "load_model", return_value=model):
            once = [_seconds(lambda: _once(folder)) for _ in range(5)]
        with _open_once(model):
            measured = [_measured(model, *benchmark) for benchmark in _benchmarks(folder)]
        size = sum(weights.numel() for weights in model.parameters()) / 1e6
    rounds = [
        [sum(times) for times in zip(*of_round, strict=True)]
        for of_round in zip(*(m.pairs for m in measured), strict=True)
    ]
    padding, tokens = (sum(getattr(m, what) for m in measured) for what in ("padding", "tokens"))
    bare = statistics.median(bare for _, bare in rounds)
    yield _ratio(
        f"evaluation / bare passes, {len(measured)} benchmarks, {PROMPTS} prompts each, {size:.0f} million parameters "
        f"({bare:.0f} s, {padding / tokens:.0%} of the prompts' tokens are padding)",
        [whole / bare for whole, bare in rounds],
        "≤ 1.15",
    )
    yield _ratio("seconds once per job, without reading the weights", once[1:])
    for m in measured:
        if m.passes:
            yield _ratio(m.told, [whole / bare for whole, bare in m.pairs])
    few, many, large = (
        elsewhere(_grown, records * MEMORY_RECORDS, tokens * MEMORY_TOKENS)
        for records, tokens in ((1, 1), (2, 1), (2, 2))
    )
    told = f"beyond the model, {MEMORY_RECORDS} records, batches of {MEMORY_TOKENS} tokens: {few / 2**20:.0f} MiB"
    yield _ratio(f"peak memory, twice the records / as they are ({told})", [many / few], "≤ 1.05")
    yield _ratio("peak memory, batches twice as large / as they are", [large / many])


def _seconds(work: Callable[[], object]) -> float:
    """CPU seconds of this process, which other processes disturb less than the time on the wall."""
    started = time.process_time()
    work()
    return time.process_time() - started


def _ratio(what: str, ratios: list[float], wanted: str = "") -> Ratio:
    return Ratio(what, statistics.median(ratios), min(ratios), max(ratios), wanted)


@dataclass
class _Measured:
    """A benchmark: seconds of (the evaluation, its passes) by round, how many passes, tokens and padding of prompts."""

    name: str
    pairs: list[tuple[float, float]]
    passes: int
    padding: int
    tokens: int

    @property
    def told(self) -> str:
        seconds = statistics.median(bare for _, bare in self.pairs)
        return f"{self.name} ({self.passes} passes, {seconds:.2f} s, {self.padding / max(1, self.tokens):.0%} padding)"


def _measured(model: LlamaForCausalLM, name: str, work: Callable[[], None]) -> _Measured:
    calls = _recorded(model, work)  # also the warm-up
    pairs = []
    for number in range(ROUNDS):
        if number % 2:
            bare = _again(calls)
            pairs.append((_seconds(work), bare))
        else:
            pairs.append((_seconds(work), _again(calls)))
    found = _Measured(name, pairs, len(calls), *_padding(calls))
    print(f"{found.told}: {', '.join(f'{whole:.3f} / {bare:.3f} s' for whole, bare in pairs)}", flush=True)
    return found


# --- the model, the records and the work ---


def _checkpoint(folder: Path) -> LlamaForCausalLM:
    """A model with random weights in `folder`/checkpoint, as the workflow keeps one."""
    torch.manual_seed(0)
    tokenizer = build_tokenizer(POSITIONS)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=HIDDEN,
        intermediate_size=HIDDEN * 11 // 4,
        num_hidden_layers=LAYERS,
        num_attention_heads=HIDDEN // 64,
        num_key_value_heads=HIDDEN // 64,
        max_position_embeddings=POSITIONS,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = LlamaForCausalLM(config).eval()
    install(model, {"method": "aside"})
    checkpoints.save_model(model, tokenizer, folder / "checkpoint")
    manifests.write_manifest(folder / "checkpoint" / "checkpoint.json", {"template": "chat"})
    return model


def _once(folder: Path) -> None:
    """What a job does once."""
    opening.open_model(folder / "checkpoint", "float32", max_tokens=None, new_tokens=16)
    manifests.provenance()


@contextmanager
def _open_once(model: LlamaForCausalLM) -> Iterator[None]:
    """Within it a checkpoint that has been opened once in some way is there when it is opened so again, likewise the
    provenance.
    """
    opened = functools.cache(opening.open_model)
    with (
        mock.patch.object(checkpoints, "load_model", return_value=model),
        mock.patch.object(opening, "open_model", opened),
        mock.patch.object(answering, "open_model", opened),
        mock.patch.object(manifests, "provenance", functools.cache(manifests.provenance)),
    ):
        yield


def _benchmarks(folder: Path) -> Iterator[tuple[str, Callable[[], None]]]:
    """Each benchmark of the miniature's studies that the checkpoint and records suffice for, and its work."""
    catalogue = loading.load(overlays.read([CONFIG / "miniature.yaml"], CONFIG), CONFIG)
    names = dict.fromkeys(name for study in catalogue.studies.values() for name in study.benchmarks if study.models)
    for name in names:
        asked = plan.answer_inputs(catalogue, MODEL, RECIPE, SEED, name)
        if name.startswith("adaptive") or any(
            "/vectors/" in path or "/projections/" in path for path in asked.values()
        ):
            print(f"bench evaluation: {name} is left out")
            continue
        yield name, _work(catalogue, name, asked, folder, PROMPTS)


def _work(catalogue: Catalogue, name: str, asked: dict[str, str], folder: Path, prompts: int) -> Callable[[], None]:
    """A job's work over the records of so many prompts. asked: the files that it reads, by name."""
    work = plan.answers(catalogue, MODEL, RECIPE, name)
    settings = {**work.settings}
    settings |= {key: few for key, few in (("records", prompts), ("count", TEXTS)) if key in settings}  # that are drawn
    benchmark = benchmark_of(work.module, settings)
    inputs = {
        key: folder / "checkpoint" / "checkpoint.json"
        if path.startswith("results/checkpoints/")
        else _records(catalogue, path, folder)
        for key, path in asked.items()
    }
    checkpoint, records = inputs.pop("checkpoint"), inputs.pop("records")
    loaded = benchmark.load(records)
    few = loaded[: max(1, prompts // len(benchmark.variants(loaded[0])))]
    benchmark.load = lambda path: few
    return functools.partial(
        answer,
        checkpoint,
        records,
        benchmark,
        seed=int(SEED),
        dtype="float32",
        threads=torch.get_num_threads(),
        answers=folder / "answers.jsonl",
        provenance=folder / "provenance.json",
        inputs=inputs,
    )


def _records(catalogue: Catalogue, path: str, folder: Path) -> Path:
    """The miniature's records that stand for results/data/<data set>/<split>.jsonl."""
    *_, dataset, split = Path(path).with_suffix("").parts
    target = folder / f"{dataset}-{split}-all.jsonl"
    if target.exists():
        return target
    entity = catalogue.dataset(dataset)
    wanted = entity.splits[split]
    of_source, count = (wanted, None) if isinstance(wanted, str) else (split, int(wanted))
    raw = folder / "raw.jsonl"
    write_miniature(entity.source.miniature, MiniatureSettings(), of_source, raw, count)
    options = entity.model_dump(include={"parts", "where", "shuffle_seed", "limit", *readers.OPTIONS})
    write_records(target, readers.read_split({of_source: raw}, split, entity.splits, schema_of(entity.kind), **options))
    return target


# --- the passes ---


@dataclass
class _Call:
    """One call of a module. cache: the name of the argument that is the cache of the call before, None if there was
    none; cached: tokens that it holds, of which a later call may see fewer (options after one context); rows: that the
    call has.
    """

    module: torch.nn.Module
    positional: tuple[Any, ...]
    named: dict[str, Any]
    cache: str | None
    cached: int
    rows: int

    @property
    def ids(self) -> torch.Tensor | None:
        return self.named.get("input_ids", self.positional[0] if self.positional else None)


def _recorded(model: LlamaForCausalLM, work: Callable[[], None]) -> list[_Call]:
    """The calls of a model, or of its blocks alone, that a piece of work makes."""
    calls: list[_Call] = []
    inside = False

    def watched(module: torch.nn.Module) -> Callable[..., Any]:
        forward = module.forward

        @functools.wraps(forward)
        def recording(*positional: Any, **named: Any) -> Any:
            nonlocal inside
            if inside:
                return forward(*positional, **named)
            given = inspect.signature(forward).bind(*positional, **named).arguments
            held = given.get("past_key_values")
            cached = 0 if held is None else held.get_seq_length()
            cache = "past_key_values" if cached else None
            kept = {key: _copy(value) for key, value in named.items() if key != "past_key_values"}
            rows = len(next(value for value in given.values() if isinstance(value, torch.Tensor)))
            calls.append(_Call(module, tuple(map(_copy, positional)), kept, cache, cached, rows))
            inside = True
            try:
                return forward(*positional, **named)
            finally:
                inside = False

        return recording

    with (
        mock.patch.object(model, "forward", watched(model)),
        mock.patch.object(model.model, "forward", watched(model.model)),
    ):
        work()
    return calls


def _copy(value: Any) -> Any:
    return value.clone() if isinstance(value, torch.Tensor) else value


@torch.inference_mode()
def _again(calls: list[_Call]) -> float:
    """Seconds of the calls alone. Rows that have left the cache leave it between two calls."""
    taken, cache = 0.0, None
    for call in calls:
        named = dict(call.named)
        if call.cache is not None:
            if len(cache.layers[0].keys) > call.rows:
                _select_rows(cache, torch.arange(call.rows))
            if cache.get_seq_length() > call.cached:
                cache.crop(call.cached - cache.get_seq_length())
            named[call.cache] = cache
        started = time.process_time()
        output = call.module(*call.positional, **named)
        taken += time.process_time() - started
        cache = getattr(output, "past_key_values", None)
    return taken


def _padding(calls: list[_Call]) -> tuple[int, int]:
    """(padding, all tokens) of the passes over prompts. The padding is the id 0 or what the mask leaves out."""
    padding = tokens = 0
    for call in calls:
        if call.cache is None and call.ids is not None:
            mask = call.named.get("attention_mask")
            padding += int((call.ids == 0).sum() if mask is None else (mask == 0).sum())
            tokens += call.ids.numel()
    return padding, tokens


# --- memory ---


def _grown(records: int, tokens: int) -> float:
    """Bytes at the highest beyond what the process holds with the model, where `tasks` is answered."""
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name, mock.patch.object(batching, "CPU_TOKEN_BUDGET", tokens):
        folder = Path(name)
        model = _checkpoint(folder)
        catalogue = loading.load(overlays.read([CONFIG / "miniature.yaml"], CONFIG), CONFIG)
        asked = plan.answer_inputs(catalogue, MODEL, RECIPE, SEED, "tasks")
        with _open_once(model):
            _work(catalogue, "tasks", asked, folder, 1)()  # whatever is loaded once
            work = _work(catalogue, "tasks", asked, folder, records)
            Path("/proc/self/clear_refs").write_text("5")  # the highest so far is forgotten
            before = memory("VmRSS")
            work()
        assert len((folder / "answers.jsonl").read_text().splitlines()) == records
        return memory("VmHWM") - before
