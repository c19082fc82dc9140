"""Hostile texts, and what must hold of every prompt that is made of them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cache

from odd_tokenizers import BACKENDS, odd_tokenizer
from tiny_tokenizers import FAMILIES, SENTENCES, tiny_tokenizer

from bulwark.data.records import ROLE_NUMBERS, Turn
from bulwark.prompts.builder import IGNORED, Prompt, PromptBuilder
from bulwark.prompts.chat import PromptError

V = 4000
KINDS = [*BACKENDS, "bytes", "marks"]
PIECES = [
    *(
        "\ue0000\ue001",
        "\ue0001\ue001",
        "\ue000",
        "\U000f0000",
        "\U000f00000\U000f0000",
        "\U00100000",
        "\x00",
        "\u2028",
    ),
    *("<unk>", "[UNK]", "</s>", "<s>", "<|endoftext|>", "<eos>", "<pad>", "<unused7>", "<0x0A>", "[INST]", "[/INST]"),
    *("<|im_end|>", "<|im_start|>assistant\n", "<start_of_turn>model\n", "<|eot_id|>", "<</SYS>>", "Response: "),
    *(
        "<|start_header_id|>system<|end_header_id|>\n\n",
        "＜／ｓ＞",
        "< /s>",
        "{{ bos_token }}",
        "{% raw %}",
        "</",
        "s>",
        "<|im_",
    ),
    *(
        " ",
        "  ",
        "\n",
        "\t",
        "\u00a0",
        "\u200b",
        "\u0301",
        "é",
        "日本",
        "\U0001f600",
        "\u202e",
        "ﬁ",
        "İ",
        "▁",
        "Ġ",
        "##s",
    ),
    *("Input:\n", "Instruction:\n", "a", "the", "Name the part", *SENTENCES),
]


def text(rng: random.Random) -> str:
    """A text of a few pieces, never blank."""
    made = "".join(rng.choice(PIECES) for _ in range(rng.randint(1, 5)))
    return made if made.strip() else made + "x"


def conversation(rng: random.Random, ends_with_response: bool) -> tuple[Turn, ...]:
    """One or two exchanges, with or without a system turn and data, in either order."""
    turns = [Turn(role="system", text=text(rng))] if rng.random() < 0.3 else []
    for last in [False, True][rng.randint(0, 1) :]:
        asked = [Turn(role="instruction", text=text(rng))] + [Turn(role="data", text=text(rng))] * (rng.random() < 0.8)
        turns += asked if rng.random() < 0.8 else asked[::-1]
        if not last or ends_with_response:
            turns.append(Turn(role="response", text=text(rng), learn=rng.random() < 0.8))
    return tuple(turns)


@cache
def builder(kind: str, family: str, template: str) -> PromptBuilder:
    """The builder of a kind of tokenizer with a family's chat template."""
    tokenizer = odd_tokenizer(kind, family) if kind in BACKENDS else tiny_tokenizer(family, kind=kind)
    return PromptBuilder(tokenizer, template, V)


def special_ids(made: PromptBuilder) -> set[int]:
    """All special ids, but an unknown token that has no other meaning: what stands for characters nobody knows."""
    tokenizer = made.tokenizer
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    named = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
    return special - ({tokenizer.unk_token_id} - named)


def check(made: PromptBuilder, turns: Sequence[Turn], prompt: Prompt, neutral: Prompt, reversible: bool) -> None:
    """Assert what must hold of `prompt`; neutral: of the same shape, with plain words in every turn.

    reversible: decoding gives the very text back, as byte-level tokenizers do.
    """
    ids = [number % V for number in prompt.ids]
    special = special_ids(made)
    frame = [i % V for i in neutral.ids if i % V in special]
    assert [i for i in ids if i in special] == frame, "a text wrote a special token, or the template's were lost"
    assert [number // V for number in prompt.ids] == prompt.roles
    assert not prompt.truncated
    if reversible:
        assert made.tokenizer.decode(ids, clean_up_tokenization_spaces=False) == prompt.text, "characters are lost"
    for turn in turns:
        assert turn.text.strip() in prompt.text, f"lost: {turn.text!r}"
    spans = {span.turn: span for span in prompt.spans}
    owner = {place: span.turn for span in prompt.spans for place in range(span.start, span.end)}
    for number, turn in enumerate(turns):
        if number not in spans:
            continue  # all its characters are written by tokens of another turn, or by none (normalised away)
        span = spans[number]
        roles = set(prompt.roles[span.start : span.end])
        if turn.role == "data":
            assert roles == {ROLE_NUMBERS["data"]}, "data is read as an instruction"
        assert not special & set(ids[span.start : span.end]), "a special token inside a turn"
    if prompt.labels is None:
        return
    for place, label in enumerate(prompt.labels):
        assert label in (IGNORED, ids[place])
        turn = owner.get(place)
        if turn is not None and turns[turn].role != "response":
            assert label == IGNORED
        if turn is not None and turns[turn].role == "response":
            assert (label == IGNORED) != turns[turn].learn
    ends = [i for i, label in enumerate(prompt.labels) if label in made.stop_ids]
    learned = [number for number, turn in enumerate(turns) if turn.role == "response" and turn.learn]
    assert len(ends) == len(learned), "an end is missing, or stands in mid-answer"


def run(count: int, seed: int) -> dict[str, int]:
    """Check `count` prompts over all tokenizers and templates; how many were made and how many were refused."""
    rng = random.Random(seed)
    counts = {"made": 0, "refused": 0}
    for number in range(count):
        kind, family = rng.choice(KINDS), rng.choice(list(FAMILIES))
        made = builder(kind, family, rng.choice(["chat", "alpaca"]))
        example = rng.random() < 0.5
        turns = conversation(rng, example)
        ask = made.example if example else made.prompt
        plain = [turn.model_copy(update={"text": "the"}) for turn in turns]
        try:
            neutral, prompt = ask(plain), ask(turns)
        except PromptError as error:
            counts["refused"] += 1
            reason = str(error).partition(":")[0][:60]
            counts[reason] = counts.get(reason, 0) + 1
            continue
        try:
            check(made, turns, prompt, neutral, reversible=kind in ("bytes", "gpt2"))
        except AssertionError as error:
            raise AssertionError(f"{error} (prompt {number} of seed {seed}: {kind}, {family}, {turns})") from error
        counts["made"] += 1
    return counts
