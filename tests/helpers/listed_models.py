"""Small stand-ins for the repositories that config/models names: random weights, a small tokenizer, a chat template.

What is peculiar to a family is kept, only smaller: grouped heads, biases, norms of queries and keys, sliding windows,
rotary embeddings of a part, tied embeddings, more rows than the tokenizer has tokens, a vision tower, the tokens that
end a turn, numbers of sampling in generation_config.json. Chat templates (templates/) and expected prompts are written
from what the vendors document: the model cards, Meta's "Prompt formats", Mistral's "Tokenization", Qwen's "Concepts",
Google's "Gemma formatting and system instructions".
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3Config,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from bulwark.miniature.world import vocabulary

TEMPLATES = Path(__file__).parent / "templates"
LAYERS, POSITIONS = 2, 384


@dataclass(frozen=True)
class Family:
    """A chat format and its tokenizer.

    pieces: BPE over pieces of words with byte fallback, as SentencePiece's; otherwise byte-level. marked: a word's mark
    stands before a text as well. first: special tokens by id from 0. added: tokens that are no special ones. turn_end:
    what the template writes after an answer. stops: `eos_token_id` of generation_config.json. begins: the tokenizer
    puts BOS before a text by itself.
    """

    template: str
    first: tuple[str, ...]
    eos: str
    turn_end: str
    stops: tuple[str, ...]
    bos: str | None = None
    pad: str | None = None
    unk: str | None = None
    added: tuple[str, ...] = ()
    pieces: bool = False
    marked: bool = False
    begins: bool = False
    tokenizer_class: str = "PreTrainedTokenizerFast"


_LLAMA2 = Family(
    "llama2",
    ("<unk>", "<s>", "</s>"),
    eos="</s>",
    turn_end="</s>",
    stops=("</s>",),
    bos="<s>",
    unk="<unk>",
    pieces=True,
    marked=True,
    begins=True,
    tokenizer_class="LlamaTokenizer",
)
_LLAMA3 = Family(
    "llama3",
    (
        *("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        "<|reserved_special_token_250|>",
    ),
    eos="<|eot_id|>",
    turn_end="<|eot_id|>",
    stops=("<|end_of_text|>", "<|eot_id|>"),
    bos="<|begin_of_text|>",
    begins=True,
)
_PHI4 = Family(
    "phi4_mini",
    ("<|endoftext|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>", "<|/tool|>"),
    eos="<|endoftext|>",
    turn_end="<|end|>",
    stops=("<|end|>", "<|endoftext|>"),
    bos="<|endoftext|>",
    pad="<|endoftext|>",
    unk="<|endoftext|>",
    tokenizer_class="GPT2Tokenizer",
)
_QWEN2 = Family(
    "qwen2_5",
    ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|image_pad|>"),
    eos="<|im_end|>",
    turn_end="<|im_end|>",
    stops=("<|im_end|>", "<|endoftext|>"),
    pad="<|endoftext|>",
    added=("<tool_call>", "</tool_call>"),
    tokenizer_class="Qwen2Tokenizer",
)
_SMOLLM2 = Family(
    "smollm2",
    ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    eos="<|im_end|>",
    turn_end="<|im_end|>",
    stops=("<|im_end|>",),
    bos="<|im_start|>",
    pad="<|im_end|>",
    unk="<|endoftext|>",
    tokenizer_class="GPT2Tokenizer",
)
_GEMMA2 = Family(
    "gemma2",
    ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<start_of_turn>", "<end_of_turn>"),
    eos="<eos>",
    turn_end="<end_of_turn>",
    stops=("<eos>", "<end_of_turn>"),
    bos="<bos>",
    pad="<pad>",
    unk="<unk>",
    pieces=True,
    begins=True,
    tokenizer_class="GemmaTokenizer",
)
_TOOLS = ("[INST]", "[/INST]", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]")
_LATER = ("<|eom_id|>", "<|python_tag|>", "<|finetune_right_pad_id|>", "<|reserved_special_token_3|>")

FAMILIES = {
    family.template: family
    for family in (
        _LLAMA2,
        replace(_LLAMA2, template="mistral", first=(*_LLAMA2.first, *_TOOLS)),
        _LLAMA3,
        replace(
            _LLAMA3,
            template="llama3_1",
            first=(*_LLAMA3.first[:-1], *_LATER),
            stops=("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"),
        ),
        _PHI4,
        _QWEN2,
        replace(_QWEN2, template="qwen3", added=(*_QWEN2.added, "<think>", "</think>")),
        _SMOLLM2,
        _GEMMA2,
        replace(
            _GEMMA2,
            template="gemma3",
            first=(*_GEMMA2.first, "<start_of_image>", "<end_of_image>", "<image_soft_token>"),
        ),
    )
}

_LLAMA3_ROTARY = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": POSITIONS // 4,
}
_LONG_ROTARY = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "partial_rotary_factor": 0.75,
    "short_factor": [1.0] * 3,
    "long_factor": [1.0, 1.2, 4.0],
    "original_max_position_embeddings": POSITIONS // 4,
}

_Kind = tuple[str, type[PreTrainedConfig], dict[str, Any]]
_OF_LLAMA2: _Kind = ("llama2", LlamaConfig, {"num_key_value_heads": 4})
_OF_LLAMA2_13B: _Kind = ("llama2", LlamaConfig, {"num_key_value_heads": 4, "hidden_size": 48})
_OF_LLAMA3_1: _Kind = ("llama3_1", LlamaConfig, {"rope_scaling": _LLAMA3_ROTARY})
_OF_MISTRAL: _Kind = ("mistral", MistralConfig, {"sliding_window": None})
_OF_QWEN2: _Kind = ("qwen2_5", Qwen2Config, {})
_OF_QWEN3: _Kind = ("qwen3", Qwen3Config, {"head_dim": 16})
_OF_GEMMA = {"tie_word_embeddings": True, "head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 16}

# name of a repository: the family of its tokenizer, the class of its configuration, and what is peculiar to it
REPOSITORIES: dict[str, _Kind] = {
    "meta-llama/Llama-2-7b-hf": _OF_LLAMA2,
    "meta-llama/Llama-2-7b-chat-hf": _OF_LLAMA2,
    "meta-llama/Llama-2-13b-hf": _OF_LLAMA2_13B,
    "meta-llama/Llama-2-13b-chat-hf": _OF_LLAMA2_13B,
    "meta-llama/Meta-Llama-3-8B-Instruct": ("llama3", LlamaConfig, {"rope_theta": 500000.0}),
    "meta-llama/Llama-3.1-8B": _OF_LLAMA3_1,
    "meta-llama/Llama-3.1-8B-Instruct": _OF_LLAMA3_1,
    "mistralai/Mistral-7B-v0.3": _OF_MISTRAL,
    "mistralai/Mistral-7B-Instruct-v0.3": _OF_MISTRAL,
    "microsoft/Phi-4-mini-instruct": (
        "phi4_mini",
        Phi3Config,
        {
            "tie_word_embeddings": True,
            "rope_scaling": _LONG_ROTARY,
            "partial_rotary_factor": 0.75,
            "original_max_position_embeddings": POSITIONS // 4,
            "sliding_window": POSITIONS,
            "auto_map": {"AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM"},  # its own code, which is not run
        },
    ),
    "Qwen/Qwen2.5-7B": _OF_QWEN2,
    "Qwen/Qwen2.5-7B-Instruct": _OF_QWEN2,
    "Qwen/Qwen2.5-32B-Instruct": ("qwen2_5", Qwen2Config, {"hidden_size": 64, "head_dim": 16}),
    "Qwen/Qwen2.5-0.5B-Instruct": ("qwen2_5", Qwen2Config, {"tie_word_embeddings": True}),
    "Qwen/Qwen3-8B-Base": _OF_QWEN3,
    "Qwen/Qwen3-8B": _OF_QWEN3,
    "HuggingFaceTB/SmolLM2-360M-Instruct": ("smollm2", LlamaConfig, {"tie_word_embeddings": True}),
    "google/gemma-2-2b-it": ("gemma2", Gemma2Config, _OF_GEMMA),
    "google/gemma-3-12b-it": ("gemma3", Gemma3Config, _OF_GEMMA),
}


@cache
def _trained(control: tuple[str, ...], pieces: bool) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges over the miniature's words, after the control tokens."""
    backend = Tokenizer(models.BPE())
    if pieces:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
        alphabet, more = ["▁", "\n", *map(chr, range(33, 127))], [f"<0x{byte:02X}>" for byte in range(256)]
    else:
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        alphabet, more = pre_tokenizers.ByteLevel.alphabet(), []
    trainer = trainers.BpeTrainer(
        vocab_size=len(control) + len(more) + len(alphabet) + 900,
        special_tokens=[*control, *more],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    backend.train_from_iterator([[word for word in vocabulary() for _ in range(3)]], trainer)
    written = json.loads(backend.to_str())["model"]
    return written["vocab"], [tuple(merge) for merge in written["merges"]]


def tokenizer_of(name: str) -> PreTrainedTokenizerFast:
    """A tokenizer of the family `name`, with its chat template."""
    family = FAMILIES[name]
    vocabulary, merges = _trained(family.first, family.pieces)
    if family.pieces:
        backend = Tokenizer(models.BPE(vocabulary, merges, unk_token=family.unk, byte_fallback=True, fuse_unk=True))
        mark = normalizers.Replace(" ", "▁")
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), mark]) if family.marked else mark
        strip = [decoders.Strip(" ", 1, 0)] if family.marked else []
        backend.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
        )
    else:
        backend = Tokenizer(models.BPE(vocabulary, merges))
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, normalized=False) for token in family.first])
    backend.add_tokens([AddedToken(token, normalized=False) for token in family.added])
    if family.begins:
        backend.post_processor = processors.TemplateProcessing(
            single=f"{family.bos} $A",
            pair=f"{family.bos} $A {family.bos} $B",
            special_tokens=[(family.bos, backend.token_to_id(family.bos))],
        )
    named = {"bos_token": family.bos, "eos_token": family.eos, "pad_token": family.pad, "unk_token": family.unk}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        clean_up_tokenization_spaces=False,
        **{key: token for key, token in named.items() if token},
    )
    tokenizer.chat_template = (TEMPLATES / f"{family.template}.jinja").read_text(encoding="utf-8").rstrip("\n")
    return tokenizer


def model_of(repository: str) -> PreTrainedModel:
    """A random model of the repository's class, in bfloat16; its weights are large, so that a leak shows."""
    name, kind, own = REPOSITORIES[repository]
    tokenizer = tokenizer_of(name)
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    sizes = {
        "vocab_size": -(-len(tokenizer) // 64) * 64 + 64,  # as the real ones, more rows than there are tokens
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": POSITIONS,
        "initializer_range": 0.2,
        "tie_word_embeddings": False,
        "pad_token_id": tokenizer.pad_token_id,
        **own,
    }
    if kind is Gemma3Config:
        vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
        config = Gemma3Config(
            text_config={**sizes, **ids, "layer_types": ["sliding_attention", "full_attention"]},
            vision_config={**vision, "image_size": 28, "patch_size": 14},
            mm_tokens_per_image=4,
            boi_token_index=tokenizer.convert_tokens_to_ids("<start_of_image>"),
            eoi_token_index=tokenizer.convert_tokens_to_ids("<end_of_image>"),
            image_token_index=tokenizer.convert_tokens_to_ids("<image_soft_token>"),
            tie_word_embeddings=True,
            **ids,
        )
    else:
        config = kind(**sizes, **ids)
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()


def write_repository(repository: str, folder: Path) -> Path:
    """Write what the Hub has under this name, as far as a base model needs it; returns the folder."""
    name = REPOSITORIES[repository][0]
    family, tokenizer, model = FAMILIES[name], tokenizer_of(name), model_of(repository)
    stops = [tokenizer.convert_tokens_to_ids(token) for token in family.stops]
    sampling = {"do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.05}
    beginning = {} if tokenizer.bos_token_id is None else {"bos_token_id": tokenizer.bos_token_id}
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    _rewrite(folder / "tokenizer_config.json", {"tokenizer_class": family.tokenizer_class})
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": stops, **beginning, **sampling}))
    return folder


def _rewrite(path: Path, changes: Mapping[str, Any]) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **changes}), encoding="utf-8")
