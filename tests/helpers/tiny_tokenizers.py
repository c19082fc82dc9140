"""Tiny tokenizers with the chat formats of the model families, made on the spot: no download, no file."""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

SENTENCES = [
    "Below is an instruction that describes a task, paired with an input that provides further context.",
    "Write a response that appropriately completes the request. Instruction: Input: No input Response:",
    "Translate the sentence into French. Name the part of a tree that grows underground.",
    "The committee met on Tuesday and decided, after a long debate, to postpone the vote; nobody objected.",
    "I am seeking a 30-day meal plan: meat and vegetables, three meals a day.\n\nÉté à Zürich, naïve café.",
]

LLAMA3 = (
    "{{ bos_token }}{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
    "{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] | trim %}"
    "{% set messages = messages[1:] %}{% else %}{% set system = '' %}{% endif %}"
    "<|start_header_id|>system<|end_header_id|>\n\nToday Date: {{ date_string }}\n\n{{ system }}<|eot_id|>"
    "{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n{{ m['content'] | trim }}<|eot_id|>"
    "{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
CHATML = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are helpful.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Qwen3: an empty thought stands before an answer, and a thought inside an answer is taken out.
CHATML_THINKING = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' %}{% set answer = m['content'].split('</think>')[-1].lstrip('\n') %}"
    "<think>\n\n</think>\n\n{{ answer }}{% else %}{{ m['content'] }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}{% set system = messages[0]['content'] %}"
    "{% else %}{% set rest = messages %}{% set system = false %}{% endif %}"
    "{% for m in rest %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant') }}{% endif %}"
    "{% if loop.index0 == 0 and system %}{% set content = '<<SYS>>\n' + system + '\n<</SYS>>\n\n' + m['content'] %}"
    "{% else %}{% set content = m['content'] %}{% endif %}"
    "{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
# v0.3: the system text is glued to the last user text; roles alternate; [INST] is a control token.
MISTRAL = (
    "{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}{% set rest = messages[1:] %}"
    "{% else %}{% set rest = messages %}{% endif %}{{ bos_token }}"
    "{% for m in rest %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if m['role'] == 'user' %}{% if (loop.last or loop.index0 == rest | length - 2) and system is defined %}"
    "{{ '[INST] ' + system + '\n\n' + m['content'] + '[/INST]' }}{% else %}{{ '[INST] ' + m['content'] + '[/INST]' }}"
    "{% endif %}{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}"
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}"
    "<start_of_turn>{{ role }}\n{{ m['content'] | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)

# name: template, bos, eos, other control tokens, the token that ends a response, kind of tokenizer
FAMILIES = {
    "llama3": (
        LLAMA3,
        "<|begin|>",
        "<|end|>",
        ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
        "<|eot_id|>",
    ),
    "chatml": (CHATML, None, "<|im_end|>", ["<|im_start|>"], "<|im_end|>"),
    "chatml_thinking": (CHATML_THINKING, None, "<|im_end|>", ["<|im_start|>"], "<|im_end|>"),
    "llama2": (LLAMA2, "<s>", "</s>", [], "</s>"),
    "mistral": (MISTRAL, "<s>", "</s>", ["[INST]", "[/INST]"], "</s>"),
    "gemma": (GEMMA, "<bos>", "<eos>", ["<start_of_turn>", "<end_of_turn>"], "<end_of_turn>"),
    "plain": (None, None, "<|endoftext|>", [], "<|endoftext|>"),
    "plain_with_bos": (None, "<s>", "</s>", [], "</s>"),
}


def tiny_tokenizer(family: str, automatic_bos: bool = False, kind: str = "bytes", **more) -> PreTrainedTokenizerFast:
    """A tokenizer of the family: byte-level BPE ("bytes"), BPE with word marks ("marks") or whole words ("words")."""
    template, bos, eos, others, _ = FAMILIES[family]
    control = [token for token in (bos, eos, *others) if token]
    backend = _words(control) if kind == "words" else _bpe(control, kind)
    if automatic_bos and bos:
        backend.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, backend.token_to_id(bos))]
        )
    named = {"bos_token": bos, "eos_token": eos, "unk_token": "<unk>" if kind == "words" else None}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, **{name: token for name, token in named.items() if token}, **more
    )
    tokenizer.chat_template = template
    return tokenizer


def _bpe(control: list[str], kind: str) -> Tokenizer:
    backend = Tokenizer(models.BPE())
    if kind == "bytes":
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        backend.post_processor = processors.ByteLevel(trim_offsets=True)  # as Llama 3: offsets without spaces
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
        backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
        alphabet = sorted({"▁", "\n", *map(chr, range(33, 127)), *"".join(SENTENCES)} - {" "})
    trainer = trainers.BpeTrainer(
        vocab_size=480, special_tokens=control, initial_alphabet=alphabet, show_progress=False, max_token_length=12
    )
    backend.train_from_iterator(SENTENCES * 4, trainer)
    return backend


def _words(control: list[str]) -> Tokenizer:
    words = sorted({word for sentence in SENTENCES for word in sentence.split()})
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(["<unk>", *control, *words])}, "<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens([*control, "<unk>"])
    return backend


def word_tokenizer(rows: int) -> PreTrainedTokenizerFast:
    """The words w4, w5, … with their numbers as ids, below `rows`, after four special tokens."""
    special = ["<pad>", "<s>", "</s>", "<unk>"]
    words = {word: i for i, word in enumerate([*special, *(f"w{i}" for i in range(len(special), rows))])}
    inner = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    result = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    result.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    return result
