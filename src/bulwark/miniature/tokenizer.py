"""The miniature's tokenizer: one token per word, with a chat template; an ordinary fast tokenizer of transformers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bulwark.miniature.world import vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, BEGIN, END, UNKNOWN = "<pad>", "<s>", "</s>", "<unk>"
ROLES = ("<|system|>", "<|user|>", "<|assistant|>")
BLANK_LINE = "\n\n"  # a token of its own: only it separates the two parts of a user message

CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message['role'] not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('Unknown role: ' + message['role']) }}"
    "{% endif %}"
    "{{ '<|' + message['role'] + '|>' + ' ' + message['content'] + ' ' + eos_token }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' + ' ' }}{% endif %}"
)


def build_tokenizer(max_tokens: int) -> PreTrainedTokenizerFast:
    """The tokenizer over the world's vocabulary; `max_tokens` is the model's longest input.

    Words are what white space and punctuation separate, in lower case. The world's own texts are lower-case words
    joined by single spaces, so that decoding gives them back unchanged.
    """
    from tokenizers import AddedToken, Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.normalizers import Lowercase
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import PreTrainedTokenizerFast

    special = [PAD, BEGIN, END, UNKNOWN, *ROLES]
    entries = [*special, BLANK_LINE, *vocabulary()]
    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(entries)}, unk_token=UNKNOWN))
    tokenizer.normalizer = Lowercase()
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    tokenizer.add_tokens([AddedToken(BLANK_LINE, normalized=False)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BEGIN,
        eos_token=END,
        unk_token=UNKNOWN,
        additional_special_tokens=[*ROLES],
        chat_template=CHAT_TEMPLATE,
        model_max_length=max_tokens,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
