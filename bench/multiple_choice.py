"""Multiple choice against lm-eval's own model for transformers (`HFLM`) at its best batch size: same items, same texts.

A plain Llama with random weights and a byte-level BPE tokenizer, so that both read the same tokens. Both sides make
their prompts from the records and score every option, as a job does; model and tokenizer are loaded. The likelihoods
are compared before anything is timed. CPU seconds, in turn; HFLM's batch size is the best of those that are tried.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from lm_eval.api.task import ConfigurableTask
from lm_eval.models.huggingface import HFLM
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from bench.timing import Ratio, cpu_seconds, ratio
from bulwark.benchmarks import mmlu
from bulwark.evaluation import harness
from bulwark.evaluation.examinee import Examinee
from bulwark.models.embeddings import install
from bulwark.models.open import LanguageModel
from bulwark.prompts.builder import PromptBuilder

HIDDEN, LAYERS, VOCABULARY, POSITIONS = 128, 2, 4096, 2048
ITEMS, SHOTS, ROUNDS, SUBJECT = 60, 5, 3, "anatomy"
BATCHES = (1, 4, 16)  # of HFLM, in rows
CHAT = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
TEXT = Path(__file__).parents[1] / "docs"


def run() -> Iterator[Ratio]:
    """Time of HFLM / ours, for letters after five examples and for whole options, with and without a chat template."""
    logging.disable(logging.WARNING)
    tokenizer = _tokenizer()
    model = _model(tokenizer)
    for format, template in (("letters", True), ("letters", False), ("continuation", True), ("continuation", False)):
        ours, theirs = sides(model, tokenizer, records(ITEMS), records(SHOTS, "e"), format, template)
        found = ours()
        best = _best(theirs, found)
        where = "chat" if template else "bare text"
        yield ratio(
            f"{ITEMS} items, {SHOTS} shots, {format}, {where}: HFLM (batches of {best}) / ours",
            lambda best=best, theirs=theirs: theirs(best),
            ours,
            "≥ 1",
            rounds=ROUNDS,
            clock=cpu_seconds,
        )


def _best(theirs: Callable[[int], list[list[float]]], ours: list[list[float]]) -> int:
    """The batch size in which HFLM is fastest. Raises AssertionError where its likelihoods are not ours."""
    taken = {}
    for rows in BATCHES:
        difference = furthest(ours, theirs(rows))
        assert difference < 1e-4, f"the likelihoods differ by {difference}"
        taken[rows] = cpu_seconds(lambda rows=rows: theirs(rows))
    return min(taken, key=taken.__getitem__)


def sides(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    asked: Sequence[dict],
    examples: Sequence[dict],
    format: str,
    template: bool,
) -> tuple[Callable[[], list[list[float]]], Callable[[int], list[list[float]]]]:
    """The log-likelihoods of all options of each record: ours, and HFLM's for a batch size."""
    settings = mmlu.Settings(format=format, template=template)
    builder = PromptBuilder(tokenizer, "chat", model.config.vocab_size)
    language_model = LanguageModel(model, tokenizer, "chat", builder)

    def task() -> ConfigurableTask:
        return harness.task_of(SUBJECT, mmlu._config(settings, SUBJECT), asked, examples, len(examples))

    def ours() -> list[list[float]]:
        with tempfile.TemporaryDirectory() as folder:
            examinee = Examinee(language_model, 0, {}, Path(folder) / "partial", "")
            rows = harness.answers(harness.Examined(examinee, template=template), [task()])
        return [[value for value, _ in json.loads(rows[record["id"]]["response"])] for record in asked]

    def theirs(rows: int) -> list[list[float]]:
        peer = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=rows, max_length=POSITIONS)
        own = task()
        with contextlib.redirect_stderr(io.StringIO()):
            own.build_all_requests(apply_chat_template=template, chat_template=peer.apply_chat_template)
        values = peer.loglikelihood(own.instances, disable_tqdm=True)
        found: dict[str, list[float]] = {}
        for instance, (value, _) in zip(own.instances, values, strict=True):
            found.setdefault(instance.doc["id"], []).append(value)
        return [found[record["id"]] for record in asked]

    return ours, theirs


def furthest(one: Sequence[Sequence[float]], other: Sequence[Sequence[float]]) -> float:
    """The largest difference of two lists of likelihoods."""
    return max(abs(a - b) for x, y in zip(one, other, strict=True) for a, b in zip(x, y, strict=True))


def records(count: int, prefix: str = "q") -> list[dict]:
    """Questions of 10 to 30 words with four options of 1 to 8 words."""
    source, words = random.Random(f"{prefix}{count}"), _words()

    def text(low: int, high: int) -> str:
        return " ".join(source.choices(words, k=source.randint(low, high)))

    return [
        {
            "id": f"{prefix}{number}",
            "question": f"{text(10, 30)}?",
            "choices": [text(1, 8) for _ in range(4)],
            "answer": source.randrange(4),
            "subject": SUBJECT,
        }
        for number in range(count)
    ]


def _words() -> list[str]:
    return sorted({word for word in (TEXT / "architecture.md").read_text().split() if word.isalpha()})


def _tokenizer() -> PreTrainedTokenizerFast:
    bare = Tokenizer(models.BPE())
    bare.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bare.decoder = decoders.ByteLevel()
    special = ["<|end|>", "<|pad|>", "<|system|>", "<|user|>", "<|assistant|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    bare.train_from_iterator((path.read_text() for path in sorted(TEXT.glob("*.md"))), trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bare, eos_token="<|end|>", pad_token="<|pad|>")
    tokenizer.chat_template = CHAT
    return tokenizer


def _model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=HIDDEN,
        intermediate_size=HIDDEN * 11 // 4,
        num_hidden_layers=LAYERS,
        num_attention_heads=HIDDEN // 64,
        max_position_embeddings=POSITIONS,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = LlamaForCausalLM(config).eval()
    install(model, {"method": "vanilla"})
    return model
