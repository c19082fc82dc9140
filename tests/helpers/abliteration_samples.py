"""A tiny model that refuses along one known direction, prompts for it, and whatever else tests of abliteration share.

Nothing is trained. In its first block, attention finds harmful words and writes `s` into the residual stream at every
later token; the second block's MLP writes more of it; the output embedding says "I'm" to it, and "sorry" after "I'm".
How harmful a word is differs, so that a partial ablation leaves some of the refusals.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_tokenizers import CHATML
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from bulwark.abliteration.settings import AttackSettings
from bulwark.analyses import abliteration
from bulwark.data.records import Turn
from bulwark.jobs.job import Job
from bulwark.models import checkpoints, manifests
from bulwark.models.embeddings import install
from bulwark.prompts.builder import Prompt, PromptBuilder
from bulwark.settings import validated

HIDDEN, LAYERS = 64, 2
CONTROL = ["<|im_start|>", "<|im_end|>"]
HARMFUL = [f"bad{n}" for n in range(8)]
HARMLESS = [f"good{n}" for n in range(8)]
VERBS = ["make", "sell", "build", "hide"]
WORDS = ["user", "assistant", "system", "You", "are", "helpful.", "a", "I'm", "sorry", *VERBS, *HARMFUL, *HARMLESS]
VOCABULARY = ["<unk>", *CONTROL, *WORDS, *(f"word{n}" for n in range(20))]
V = len(VOCABULARY)
EDGE = "good7"  # a harmless word that looks a little harmful


def words_tokenizer() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordLevel({word: number for number, word in enumerate(VOCABULARY)}, "<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens([*CONTROL, "<unk>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>", unk_token="<unk>")
    tokenizer.chat_template = CHATML
    return tokenizer


def axes() -> Tensor:
    """Orthonormal: harmful words b, refusing s, having said "I'm" q."""
    drawn = torch.randn(HIDDEN, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return torch.linalg.qr(drawn).Q.T.float()


@torch.no_grad()
def refusing_model(installed: bool = True, dtype: torch.dtype = torch.float32) -> LlamaForCausalLM:
    """The same at every call. installed: with its role embedding, as `checkpoints.load_model` gives it."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=V,
        hidden_size=HIDDEN,
        intermediate_size=96,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=128,
        initializer_range=0.05,
        pad_token_id=2,
        eos_token_id=2,
        bos_token_id=None,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config).eval()
    b, s, q = axes()
    away = torch.eye(HIDDEN) - axes().T @ axes()
    number = {word: place for place, word in enumerate(VOCABULARY)}
    embedding = torch.randn(V, HIDDEN) / HIDDEN**0.5 @ away
    for place, word in enumerate(HARMFUL):
        embedding[number[word]] += (0.8 + 0.15 * place) * b
    embedding[number[EDGE]] += 0.3 * b
    embedding[number["I'm"]] += 2 * q
    model.model.embed_tokens.weight.copy_(embedding)
    head = 0.3 * torch.randn(V, HIDDEN) @ away
    head[number["I'm"]] += 2.5 * s
    head[number["sorry"]] += 6 * q
    model.lm_head.weight.copy_(head)
    for layer in model.model.layers:
        for module in (layer.self_attn.o_proj, layer.mlp.down_proj):
            module.weight.copy_(0.65 * away @ module.weight)  # so that the classes differ in little but s
    first, last = model.model.layers[0], model.model.layers[-1]
    first.self_attn.v_proj.weight[0] = b
    first.self_attn.o_proj.weight[:, 0] += 2 * s
    last.mlp.gate_proj.weight[0] = last.mlp.up_proj.weight[0] = 0.5 * s
    last.mlp.down_proj.weight[:, 0] += 0.2 * s
    if installed:
        install(model, {"method": "vanilla"})
    return model.to(dtype)


def builder_of(tokenizer: Any = None) -> PromptBuilder:
    return PromptBuilder(tokenizer or words_tokenizer(), "chat", V)


def texts(side: str, use: str) -> list[str]:
    """16 prompts of a side ("harmful", "harmless") for a use ("directions", "search"); 14 of harmless directions."""
    verbs = VERBS[:2] if use == "directions" else VERBS[2:]
    nouns = HARMFUL if side == "harmful" else HARMLESS
    if use == "directions":  # else a benign subspace would protect refusing
        nouns = [noun for noun in nouns if noun != EDGE]
    return [f"{verb} a {noun}" for noun in nouns for verb in verbs]


def asked(words: list[str]) -> list[Prompt]:
    builder = builder_of()
    return [builder.prompt([Turn(role="instruction", text=text)]) for text in words]


def plain_ids(prompt: Prompt) -> list[int]:
    """Without roles, for a model that knows none."""
    return [i % V for i in prompt.ids]


def unit(seed: int = 0, size: int = HIDDEN, dtype: torch.dtype = torch.float64) -> Tensor:
    drawn = torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    return drawn / drawn.norm()


def checksum(model: nn.Module) -> str:
    """Of every parameter's and buffer's bits."""
    digest = hashlib.sha256()
    for name, part in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(part.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def attack_settings(**changes: Any) -> AttackSettings:
    """Settings of a searched attack on the tiny model; changes: whole sections."""
    given = {
        "prompts": {"harmful": "harmful", "harmless": "harmless"},
        "dtype": "float32",
        "space": {
            "max_weight": {"attention": [0.5, 1.5], "mlp": [-0.25, 1.5]},
            "max_weight_position": [0.0, 1.0],
            "min_weight_distance": 2.0,
        },
        "search": {"trials": 8, "startup_trials": 4, "ei_candidates": 8, "max_new_tokens": 6},
    }
    for name, section in changes.items():
        given[name] = given.get(name, {}) | section if isinstance(section, dict) else section
    return validated(AttackSettings, given, "here")


def checkpoint(folder: Path, model: nn.Module | None = None) -> Path:
    """A model, by default the tiny one that refuses, as a checkpoint; returns its manifest."""
    checkpoints.save_model(model or refusing_model(), words_tokenizer(), folder)
    (folder / "processor_config.json").write_text("{}")
    manifest = folder / manifests.MANIFEST
    manifests.write_manifest(manifest, {"model": "tiny", "recipe": "base", "seed": 0, "template": "chat"})
    return manifest


def unrefusing(folder: Path) -> Path:
    """A checkpoint of the tiny model that answers everything; its manifest."""
    model = refusing_model()
    with torch.no_grad():
        model.lm_head.weight[words_tokenizer().convert_tokens_to_ids(["I'm", "sorry"])] = 0.0
    return checkpoint(folder, model)


def assert_unedited(folder: Path, parent: Path, told: dict[str, Any]) -> None:
    """The folder holds the parent's weights, one trial that edits nothing, and what the analysis of attacks needs."""
    ours, theirs = (load_file(at / "model.safetensors") for at in (folder, parent.parent))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert "is refused" in told["abliteration"]["nothing_to_remove"]
    assert told["abliteration"]["base_refusals"] == 0
    assert told["abliteration"]["trials"] == 1
    assert told["changed_modules"] == []
    assert not (folder / "adapter").exists()
    found = abliteration.analyse({"settings": {"kl_at_most": 0.1}}, folder, abliteration.Settings())
    assert [row["rate"] for row in found.rows] == [0.0]
    assert found.values["refusal_rate"] == (0.0, 16)
    assert found.values["kl"][0] == pytest.approx(0, abs=1e-6)


def job_for(kind: str, folder: Path, parent: Path, seed: int = 0) -> Job:
    """A job on `parent`, whose data lie beside `folder`."""
    inputs = {}
    for side in ("harmful", "harmless"):
        for use in ("directions", "search"):
            path = folder.parent / "data" / f"{side}_{use}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            rows = [{"id": f"{side}-{use}-{n}", "prompt": text} for n, text in enumerate(texts(side, use))]
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
            inputs[f"{side}_{use}"] = str(path)
    identity = {"model": "tiny", "recipe": kind, "seed": seed}
    return Job(kind, {}, str(parent), str(folder / manifests.MANIFEST), inputs, identity, "")


def family_model(family: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A tiny random model of a family, hidden size 16, two blocks; biases and norms' gains are random, too."""
    from transformers import AutoModelForCausalLM

    config, more = _families()[family]
    common = {
        "vocab_size": 29,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "max_position_embeddings": 64,
        "initializer_range": 0.3,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(config(**(more if family == "gpt2" else common | more))).eval()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, part in model.named_parameters():
            if name.endswith("bias") or part.dim() == 1:
                part.add_(0.3 * torch.randn(part.shape, generator=generator))
    return model.to(dtype)


def _families() -> dict[str, tuple[Any, dict[str, Any]]]:
    import transformers

    experts = {"moe_intermediate_size": 20, "num_experts": 4, "num_experts_per_tok": 2}
    gpt2 = {"vocab_size": 29, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64, "initializer_range": 0.3}
    return {
        "llama": (transformers.LlamaConfig, {}),
        "llama_biased": (transformers.LlamaConfig, {"attention_bias": True, "mlp_bias": True}),
        "gpt2": (transformers.GPT2Config, gpt2),
        "gpt_neox": (transformers.GPTNeoXConfig, {}),
        "olmo2": (transformers.Olmo2Config, {}),
        "gemma2": (transformers.Gemma2Config, {"query_pre_attn_scalar": 8}),
        "gemma3": (transformers.Gemma3TextConfig, {}),
        "gemma4": (transformers.Gemma4TextConfig, {"global_head_dim": 8, "hidden_size_per_layer_input": 0}),
        "mixtral": (transformers.MixtralConfig, {"num_local_experts": 4, "num_experts_per_tok": 2}),
        "qwen3_moe": (transformers.Qwen3MoeConfig, experts),
    }


def all_prompts() -> Any:
    """The four sets, as `subject.read_prompts` makes them."""
    from bulwark.abliteration.measure.subject import Prompts

    words = {f"{side}_{use}": texts(side, use) for side in ("harmful", "harmless") for use in ("directions", "search")}
    return Prompts(**{name: asked(rows) for name, rows in words.items()}, texts=words)


class Attacked:
    """The tiny model with all that a trial needs; fresh at every call, so that tests may change it."""

    def __init__(self, settings: AttackSettings | None = None, token_budget: int | None = None) -> None:
        from bulwark.abliteration.edit.hooks import Edits
        from bulwark.abliteration.edit.targets import targets_of
        from bulwark.abliteration.measure.directions import estimate
        from bulwark.abliteration.search.trials import Examiner
        from bulwark.models.batching import Budget
        from bulwark.models.open import LanguageModel
        from bulwark.models.residuals import last_token_residuals

        self.settings = settings or attack_settings()
        self.tokenizer, self.model, self.prompts = words_tokenizer(), refusing_model(), all_prompts()
        builder = builder_of(self.tokenizer)
        sides = [
            last_token_residuals(self.model, part, builder.pad_id, keep=True)
            for part in (self.prompts.harmful_directions, self.prompts.harmless_directions)
        ]
        self.directions = estimate(*sides, self.settings.directions)
        edit, search = self.settings.edit, self.settings.search
        self.edits = Edits(targets_of(self.model, edit.components, edit.through_norms), edit.normalization)
        self.subject = LanguageModel(
            self.model, self.tokenizer, "chat", builder, budget=token_budget and Budget(token_budget)
        )
        self.examiner = Examiner(self.subject, self.edits, self.prompts, search, self.settings.objectives, 0)

    def plan(self, parameters: Any) -> Any:
        return parameters.plan(self.directions, self.edits)

    def examine(self, proposed: Any, known: Any) -> Any:
        return self.examiner.examine([self.plan(one) for one in proposed], known)

    def score(self, found: Any) -> tuple[float, float]:
        from bulwark.abliteration.search.objectives import scores

        return scores(found.measures, self.examiner.base, self.settings.objectives)


def parameters(attention: float = 1.0, mlp: float = 1.0, index: float | None = None, method: str = "mean") -> Any:
    """A trial that edits every block alike."""
    from bulwark.abliteration.edit.kernel import Kernel
    from bulwark.abliteration.measure.directions import Choice
    from bulwark.abliteration.search.trials import Parameters

    choice = Choice(method, 0.5, index)
    weights = {"attention": attention, "mlp": mlp}
    kernels = {name: Kernel(weight, 0.5, weight, 9.0) for name, weight in weights.items()}
    return Parameters({"attention": choice, "mlp": choice}, kernels)
