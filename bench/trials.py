"""Trials of an abliteration search: edits in hooks, several at once, against an adapter written per trial.

On a GPU the model has the shape of a Llama of 8 billion parameters, else that of the miniature; weights are random, so
that no answer ends before its last token and no marker ends it earlier: what is left is the cost of a whole trial.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator
from types import SimpleNamespace

import torch

from bench.timing import Ratio, ratio
from bulwark.abliteration.edit.edits import Form, adapter
from bulwark.abliteration.edit.hooks import Edits, Plan
from bulwark.abliteration.edit.targets import targets_of, weight_of
from bulwark.abliteration.measure.measuring import first_token_log_probabilities, kl_divergence
from bulwark.abliteration.measure.subject import Prompts
from bulwark.abliteration.search.trials import Examiner
from bulwark.abliteration.settings import ObjectiveSettings, SearchSettings
from bulwark.models.batching import padded
from bulwark.models.embeddings import role_embedding_of
from bulwark.models.open import LanguageModel
from bulwark.prompts.builder import Prompt

PROMPTS, TRIALS = 100, 4
GPU = torch.cuda.is_available()
NEW_TOKENS = 100 if GPU else 32
ROUNDS = 2 if GPU else 3


class Words:
    """A tokenizer as far as answers need one: it writes ids as numbers."""

    def batch_decode(self, rows, **options) -> list[str]:
        return [" ".join(map(str, row)) for row in rows]


def run() -> Iterator[Ratio]:
    """Seconds of the same trials, one way over the other."""
    logging.disable(logging.INFO)
    model = _model()
    prompts = prompts_of(model.config.vocab_size, PROMPTS)
    edits = Edits(targets_of(model))
    subject = subject_of(model)
    search = SearchSettings(max_new_tokens=NEW_TOKENS)
    examiner = Examiner(subject, edits, prompts, search, ObjectiveSettings(), seed=0)
    plans = [plan_of(model, edits, number) for number in range(TRIALS)]

    def at_once() -> None:
        examiner.examine(plans)
        _wait()

    def one_by_one() -> None:
        for plan in plans:
            examiner.examine([plan])
        _wait()

    where = f"{model.num_parameters() / 1e9:.2g} billion parameters, {model.dtype}, {model.device.type}"
    yield ratio(f"{TRIALS} trials one by one / at once ({where})", one_by_one, at_once, "> 1", rounds=ROUNDS)
    adapted = _adapted(model, edits)

    def with_adapters() -> None:
        for plan in plans:
            _trial_with_adapter(adapted, edits, plan, examiner, prompts)
        _wait()

    yield ratio(
        f"{TRIALS} trials, adapter and generate each / ours at once", with_adapters, at_once, "> 1", rounds=ROUNDS
    )


def _model():
    from transformers import LlamaConfig, LlamaForCausalLM

    from bulwark.models.embeddings import install

    shape = (4096, 14336, 32, 32, 8, 32000) if GPU else (128, 352, 4, 4, 4, 600)
    hidden, intermediate, layers, heads, groups, words = shape
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        vocab_size=words,
        initializer_range=0.02,
    )
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16 if GPU else torch.float32)
    try:
        with torch.device("cuda" if GPU else "cpu"):
            model = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
    install(model, {"method": "vanilla"})
    return model.eval()


def subject_of(model) -> LanguageModel:
    """The model with as much of a prompt builder as answering prompts of ids needs."""
    embedding = role_embedding_of(model)
    builder = SimpleNamespace(stop_ids=[1], pad_id=0, roles=embedding.roles, vocabulary=embedding.num_embeddings)
    return LanguageModel(model, Words(), "chat", builder)


def prompts_of(words: int, count: int) -> Prompts:
    rng = random.Random(0)

    def drawn() -> list[Prompt]:
        lengths = [rng.randint(20, 60) if GPU else rng.randint(9, 14) for _ in range(count)]
        ids = [[rng.randrange(2, words) for _ in range(length)] for length in lengths]
        return [Prompt(row, None, [0] * len(row), [], "", False) for row in ids]

    return Prompts([], [], drawn(), drawn(), {"harmful_search": [""] * count, "harmless_search": [""] * count})


def plan_of(model, edits: Edits, seed: int) -> Plan:
    generator = torch.Generator().manual_seed(seed)
    vector = torch.randn(model.config.hidden_size, generator=generator)
    return {target.path: (vector / vector.norm(), 0.5) for target in edits.targets}


def _adapted(model, edits: Edits):
    from peft import LoraConfig, get_peft_model

    names = [target.path for target in edits.targets]
    config = LoraConfig(r=1, lora_alpha=1, target_modules=names, task_type="CAUSAL_LM")
    return get_peft_model(model, config).eval()


@torch.no_grad()
def _trial_with_adapter(adapted, edits: Edits, plan: Plan, examiner: Examiner, prompts: Prompts) -> None:
    """As published searches do it: write the adapter, prefill the harmless prompts, generate for the harmful ones."""
    modules = dict(adapted.base_model.model.named_modules())
    for target in edits.targets:
        vector, weight = plan[target.path]
        layer = modules[target.path]
        base = layer.get_base_layer()
        vector = vector.to(adapted.device)[None]
        a, b = adapter(weight_of(base), Form(weight * vector, vector), 1)
        layer.lora_A["default"].weight.copy_(a)
        layer.lora_B["default"].weight.copy_(b)
    logs = first_token_log_probabilities(adapted.base_model.model, prompts.harmless_search, 0)
    kl_divergence(examiner.reference.cpu(), logs).mean()
    ids = padded([prompt.ids for prompt in prompts.harmful_search], 0, left=True)
    mask = (ids != 0).long()
    adapted.generate(
        input_ids=ids.to(adapted.device),
        attention_mask=mask.to(adapted.device),
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        eos_token_id=[1],
        pad_token_id=0,
    )


def _wait() -> None:
    if GPU:
        torch.cuda.synchronize()
