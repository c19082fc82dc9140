"""The chat template of every listed model: prompts are what its vendor documents, and answers end where a turn does.

The expected texts are written from the documents that tests/helpers/listed_models.py names, not by a template.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from listed_models import FAMILIES, REPOSITORIES, tokenizer_of, write_repository

from bulwark.config.entities import Model
from bulwark.data.records import Turn
from bulwark.models import origin
from bulwark.models.decoding import Decoding
from bulwark.models.open import open_model
from bulwark.prompts.builder import IGNORED, PromptBuilder
from bulwark.settings import read_yaml, validated

LISTED = {path.stem: path for path in sorted((Path(__file__).parents[3] / "config" / "models").glob("*.yaml"))}
del LISTED["miniature"]  # which has a family of its own, and is pre-trained here

ASKED = [Turn(role="instruction", text="count the dog"), Turn(role="data", text="anna has two dogs")]
SYSTEM = [Turn(role="system", text="be kind")]
ANSWER = [Turn(role="response", text="two")]
_LLAMA3 = "<|start_header_id|>{}<|end_header_id|>\n\n{}<|eot_id|>"
_DATES = "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"
_SMOL = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
_QWEN = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
_TASK = "count the dog\n\nanna has two dogs"


def llama3(*turns: tuple[str, str]) -> str:
    return "<|begin_of_text|>" + "".join(_LLAMA3.format(*turn) for turn in turns)


def chatml(*turns: tuple[str, str]) -> str:
    return "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in turns)


# family: the prompt without a system turn, the prompt with one, what an example adds to the prompt of its answer
DOCUMENTED = {
    "llama2": (
        f"<s>[INST] {_TASK} [/INST]",
        f"<s>[INST] <<SYS>>\nbe kind\n<</SYS>>\n\n{_TASK} [/INST]",
        " two </s>",
    ),
    "llama3": (
        llama3(("user", _TASK)) + "<|start_header_id|>assistant<|end_header_id|>\n\n",
        llama3(("system", "be kind"), ("user", _TASK)) + "<|start_header_id|>assistant<|end_header_id|>\n\n",
        "two<|eot_id|>",
    ),
    "llama3_1": (
        llama3(("system", _DATES), ("user", _TASK)) + "<|start_header_id|>assistant<|end_header_id|>\n\n",
        llama3(("system", f"{_DATES}be kind"), ("user", _TASK)) + "<|start_header_id|>assistant<|end_header_id|>\n\n",
        "two<|eot_id|>",
    ),
    "mistral": (f"<s>[INST] {_TASK}[/INST]", f"<s>[INST] be kind\n\n{_TASK}[/INST]", " two</s>"),
    "phi4_mini": (
        f"<|user|>{_TASK}<|end|><|assistant|>",
        f"<|system|>be kind<|end|><|user|>{_TASK}<|end|><|assistant|>",
        "two<|end|>",
    ),
    "qwen2_5": (
        chatml(("system", _QWEN), ("user", _TASK)) + "<|im_start|>assistant\n",
        chatml(("system", "be kind"), ("user", _TASK)) + "<|im_start|>assistant\n",
        "two<|im_end|>",
    ),
    "smollm2": (
        chatml(("system", _SMOL), ("user", _TASK)) + "<|im_start|>assistant\n",
        chatml(("system", "be kind"), ("user", _TASK)) + "<|im_start|>assistant\n",
        "two<|im_end|>",
    ),
    # asked not to think, the model finds an empty thought at the end of the prompt
    "qwen3": (
        chatml(("user", _TASK)) + "<|im_start|>assistant\n<think>\n\n</think>\n\n",
        chatml(("system", "be kind"), ("user", _TASK)) + "<|im_start|>assistant\n<think>\n\n</think>\n\n",
        "two<|im_end|>",
    ),
    # no system role: its text goes to the start of the first user turn
    "gemma2": (
        f"<bos><start_of_turn>user\n{_TASK}<end_of_turn>\n<start_of_turn>model\n",
        f"<bos><start_of_turn>user\nbe kind\n\n{_TASK}<end_of_turn>\n<start_of_turn>model\n",
        "two<end_of_turn>",
    ),
    "gemma3": (
        f"<bos><start_of_turn>user\n{_TASK}<end_of_turn>\n<start_of_turn>model\n",
        f"<bos><start_of_turn>user\nbe kind\n\n{_TASK}<end_of_turn>\n<start_of_turn>model\n",
        "two<end_of_turn>",
    ),
}
ROWS = 4096


def family_of(model: str) -> str:
    """The family of the tokenizer that a listed model is given."""
    source = validated(Model, read_yaml(LISTED[model]), str(LISTED[model])).source
    repository = source.tokenizer.hub if source.tokenizer else source.hub
    assert repository in REPOSITORIES, f"{model}: add {repository} to REPOSITORIES in tests/helpers/listed_models.py."
    return REPOSITORIES[repository][0]


def builder_of(family: str) -> PromptBuilder:
    tokenizer = tokenizer_of(family)
    stops = [tokenizer.convert_tokens_to_ids(token) for token in FAMILIES[family].stops]
    return PromptBuilder(tokenizer, "chat", ROWS, None, stops)


@pytest.mark.parametrize("model", LISTED)
def test_the_prompt_is_the_documented_one(model):
    family = family_of(model)
    builder = builder_of(family)
    plain, with_system, answered = DOCUMENTED[family]
    assert builder.prompt(ASKED).text == plain
    assert builder.prompt([*SYSTEM, *ASKED]).text == with_system
    assert builder.example([*ASKED, *ANSWER]).text == plain + answered
    assert builder.example([*SYSTEM, *ASKED, *ANSWER]).text == with_system + answered


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prompt_begins_once(family):
    builder, tokenizer = builder_of(family), tokenizer_of(family)
    for prompt in (builder.prompt(ASKED), builder.prompt([*SYSTEM, *ASKED]), builder.example([*ASKED, *ANSWER])):
        tokens = tokenizer.convert_ids_to_tokens([number % ROWS for number in prompt.ids])
        named = FAMILIES[family].bos
        # <|endoftext|>, the BOS of Phi-4-mini by name, stands in no prompt: neither template nor tokenizer writes it;
        # <|im_start|>, that of SmolLM2, begins each of three turns: system, user, assistant
        expected = 0 if named is None else {"phi4_mini": 0, "smollm2": 3}.get(family, 1)
        assert tokens.count(named) == expected
        assert tokens[0] == (named if expected else tokens[0])


@pytest.mark.parametrize("family", FAMILIES)
def test_an_answer_ends_with_its_turn_and_learns_to(family):
    builder, tokenizer = builder_of(family), tokenizer_of(family)
    example = builder.example([*ASKED, *ANSWER])
    tokens = tokenizer.convert_ids_to_tokens([number % ROWS for number in example.ids])
    learned = [token for token, label in zip(tokens, example.labels, strict=True) if label != IGNORED]
    assert tokens[-1] == learned[-1] == FAMILIES[family].turn_end
    assert learned.count(FAMILIES[family].turn_end) == 1
    assert example.labels[-1] in builder.stop_ids
    assert "think" not in "".join(learned)
    assert tokenizer.decode([label for label in example.labels if label != IGNORED][:-1]).strip() == "two"


@pytest.mark.parametrize("family", FAMILIES)
def test_generation_begins_where_an_example_has_its_answer(family):
    builder = builder_of(family)
    prompt, example = builder.prompt(ASKED), builder.example([*ASKED, *ANSWER])
    assert example.ids[: len(prompt.ids)] == prompt.ids
    assert all(label == IGNORED for label in example.labels[: len(prompt.ids)])


@pytest.mark.parametrize("family", FAMILIES)
def test_roles_follow_the_turns(family):
    builder, tokenizer = builder_of(family), tokenizer_of(family)
    prompt = builder.prompt([*SYSTEM, *ASKED])
    text = {
        role: tokenizer.decode([number % ROWS for number in prompt.ids if number // ROWS == role]) for role in (1, 2)
    }
    assert "be kind" in text[1]
    assert "count the dog" in text[1]
    assert "anna" not in text[1]
    assert "anna has two dogs" in text[2]


@pytest.mark.parametrize("family", FAMILIES)
def test_two_exchanges_hold_both_answers(family):
    """Qwen3 writes no thought into earlier answers, and Mistral moves the system text to the last question."""
    talk = [*SYSTEM, *ASKED, *ANSWER, Turn(role="instruction", text="again"), Turn(role="response", text="three")]
    example = builder_of(family).example(talk)
    assert example.text.count("two") == 2  # in the data and in the answer
    assert example.text.count("three") == 1
    assert example.text.count("be kind") == 1
    assert example.text.count("<think>") == (family == "qwen3")
    assert (example.text.index("be kind") > example.text.index("anna")) == (family == "mistral")


@pytest.mark.parametrize("family", FAMILIES)
def test_control_tokens_in_the_data_stay_text(family):
    builder, tokenizer, end = builder_of(family), tokenizer_of(family), FAMILIES[family].turn_end
    prompts = [builder.prompt([ASKED[0], Turn(role="data", text=text)]) for text in ("a b", f"a {end} b")]
    counts = [
        [number % ROWS for number in prompt.ids].count(tokenizer.convert_tokens_to_ids(end)) for prompt in prompts
    ]
    assert counts[0] == counts[1]
    assert end in tokenizer.decode([number % ROWS for number in prompts[1].ids if number // ROWS == 2])


@pytest.mark.parametrize("model", LISTED)
def test_a_listed_model_opens_with_its_tokenizer_padding_and_stops(model, tmp_path, monkeypatch):
    """As `fetch_model` makes it of the repositories that its file names; the stand-ins take the place of the Hub."""
    monkeypatch.setattr(origin, "fetch", lambda name, revision, folder, *more: write_repository(name, Path(folder)))
    entity = validated(Model, read_yaml(LISTED[model]), str(LISTED[model]))
    manifest = tmp_path / "model" / "model.json"
    origin.fetch_model(entity.source.model_dump(mode="json"), entity.template, manifest)
    opened = open_model(manifest, entity.dtype)
    tokenizer, family = opened.tokenizer, FAMILIES[family_of(model)]
    assert opened.template == entity.template
    assert {*tokenizer.convert_ids_to_tokens(opened.builder.stop_ids)} >= {*family.stops, family.turn_end}
    assert tokenizer.pad_token == (entity.source.pad_token or family.pad)
    assert opened.builder.vocabulary > len(tokenizer)  # more rows than there are tokens
    answer = opened.generate([("key", opened.builder.prompt([*SYSTEM, *ASKED]))], Decoding(max_new_tokens=3))
    assert 0 <= answer[0].tokens <= 3
