"""Chat templates that write the date, place the system text oddly, or leave the end of an answer to the next header."""

from __future__ import annotations

from datetime import datetime

import pytest
from tiny_tokenizers import CHATML, tiny_tokenizer
from transformers.utils import chat_template_utils

from bulwark.data.records import ROLE_NUMBERS, Turn
from bulwark.prompts import chat
from bulwark.prompts.builder import IGNORED, PromptBuilder
from bulwark.prompts.chat import PromptError

V = 1000
SYSTEM = Turn(role="system", text="Be brief.")
ASK = Turn(role="instruction", text="Name the part.")
ANSWER = Turn(role="response", text="The vote.")
AGAIN = Turn(role="instruction", text="And the other?")

WITH_DATE = (
    "{{ bos_token }}<|system|> Today is {{ strftime_now('%d %B %Y, %H:%M:%S') }} {% for m in messages %}"
    "{{ '<|' + m.role + '|> ' + m.content + ' ' + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|> {% endif %}"
)
# Mistral 7B v0.3 as published: the system text is glued to a user message only if that message is the last one.
SYSTEM_AT_LAST_USER_TURN = (
    "{%- if messages[0]['role'] == 'system' %}{%- set sys = messages[0]['content'] %}{%- set rest = messages[1:] %}"
    "{%- else %}{%- set rest = messages %}{%- endif %}{{- bos_token }}"
    "{%- for m in rest %}"
    "{%- if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{- raise_exception('roles alternate') }}{%- endif %}"
    "{%- if m['role'] == 'user' %}"
    "{%- if loop.last and sys is defined %}{{- '[INST] ' + sys + '\n\n' + m['content'] + '[/INST]' }}"
    "{%- else %}{{- '[INST] ' + m['content'] + '[/INST]' }}{%- endif %}"
    "{%- else %}{{- ' ' + m['content'] | trim + eos_token }}{%- endif %}{%- endfor %}"
)
# GLM-4: nothing closes a turn, the next role's marker does.
OPEN_TURNS = (
    "{{ bos_token }}{% for m in messages %}{{ '<|' + m['role'] + '|> ' + m['content'] + ' ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|> ' }}{% endif %}"
)
# gpt-oss: the last answer is closed by another token than those before it.
LAST_CLOSED_OTHERWISE = (
    "{% for m in messages %}<|start|>{{ m.role }}<|message|>{{ m.content }}"
    "{% if loop.last and m.role == 'assistant' %}<|return|>{% else %}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant<|message|>{% endif %}"
)


def builder(template: str, control: list[str] | None = None, **options) -> PromptBuilder:
    """A builder over a tokenizer with a template and its control tokens."""
    tokenizer = tiny_tokenizer("mistral")
    tokenizer.add_special_tokens({"additional_special_tokens": control or ["[INST]", "[/INST]"]})
    tokenizer.chat_template = template
    return PromptBuilder(tokenizer, "chat", V, **options)


@pytest.fixture
def another_day(monkeypatch):
    """transformers' clock shows another day, whenever it is asked."""

    class Clock(datetime):
        days = iter(range(1, 29))

        @classmethod
        def now(cls, tz=None):
            return datetime(2031, 3, next(cls.days))

    monkeypatch.setattr(chat_template_utils, "datetime", Clock, raising=True)
    chat_template_utils._compile_jinja_template.cache_clear()
    yield
    chat_template_utils._compile_jinja_template.cache_clear()


def test_no_prompt_depends_on_the_day(another_day):
    roles = ["<|system|>", "<|user|>", "<|assistant|>"]
    made = builder(WITH_DATE, roles)
    assert "Today is 26 July 2024, 00:00:00 <|user|>" in made.prompt((ASK,)).text
    assert made.digest == builder(WITH_DATE, roles).digest
    assert made.example((ASK, ANSWER)).text.startswith(made.prompt((ASK,)).text)
    llama = PromptBuilder(tiny_tokenizer("llama3"), "chat", V)
    assert "Today Date: 26 Jul 2024" in llama.prompt((ASK,)).text


FORMATS = ["%d %B %Y", "%Y-%m-%d", "%A, %-d %b %y", "100 %% of %H:%M", "%j %U %x %X %c %p %I", "%%d", "no", "%d%d%%%Y"]


@pytest.mark.parametrize("start", ["", "\n", "  {% if true %}x{% endif %}\n", "\t{# note #}\n a "])
@pytest.mark.parametrize("format", FORMATS)
def test_the_clock_of_templates_writes_what_the_fixed_day_does(start, format):
    template = start + "{{ DATE }} {% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"
    asked, told = (
        builder(template.replace("DATE", date))
        for date in (f"strftime_now({format!r}) | trim", repr(chat.DAY.strftime(format).strip()))
    )
    assert asked.prompt((ASK,)).text == told.prompt((ASK,)).text


def test_a_template_that_writes_something_else_each_time_is_refused():
    numbers = "{{ range(100000) | random }} "
    with pytest.raises(PromptError, match="something else each time"):
        builder(numbers + CHATML, ["<|im_start|>", "<|im_end|>"]).prompt((ASK,))


def test_the_date_of_the_arguments_is_one_date(monkeypatch):
    assert chat.TEMPLATE_ARGUMENTS["date_string"] == chat.DAY.strftime("%d %b %Y") == "26 Jul 2024"
    before = builder(WITH_DATE).digest
    monkeypatch.setattr(chat, "DAY", datetime(2025, 1, 1))
    assert builder(WITH_DATE).digest != before


def test_a_system_text_that_is_dropped_before_an_answer_goes_into_the_first_user_message():
    made = builder(SYSTEM_AT_LAST_USER_TURN)
    prompt, example = made.prompt((SYSTEM, ASK)), made.example((SYSTEM, ASK, ANSWER))
    assert prompt.text == "<s>[INST] Be brief.\n\nName the part.[/INST]"
    assert example.text == prompt.text + " The vote.</s>"
    longer = made.prompt((SYSTEM, ASK, ANSWER, AGAIN))
    assert longer.text == example.text + "[INST] And the other?[/INST]"
    assert made.example((SYSTEM, ASK, ANSWER, AGAIN, ANSWER)).text == longer.text + " The vote.</s>"


@pytest.mark.parametrize(
    "condition", ["messages | length < 4", "messages[-1].role == 'user'", "messages | length == 3", "not loop.last"]
)
def test_a_system_text_that_is_dropped_in_some_conversations_is_written_in_all(condition):
    made = builder(
        "{% for m in messages %}{% if m.role != 'system' or CONDITION %}<|im_start|>{{ m.role }}\n{{ m.content }}"
        "<|im_end|>\n{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}".replace(
            "CONDITION", condition
        ),
        ["<|im_start|>", "<|im_end|>"],
    )
    own = condition == "not loop.last"  # never true of a system message: the template takes it everywhere
    start = "<|im_start|>system\nBe brief.<|im_end|>\n" if own else "<|im_start|>user\nBe brief.\n\n"
    for turns in ((SYSTEM, ASK), (SYSTEM, ASK, ANSWER, AGAIN)):
        assert made.prompt(turns).text.startswith(start)
        assert made.example((*turns, ANSWER)).text.startswith(made.prompt(turns).text)


def test_a_template_that_takes_one_exchange_only_keeps_its_system_message():
    made = builder(
        "{% if messages | selectattr('role', 'equalto', 'user') | list | length > 1 %}"
        "{{ raise_exception('one exchange') }}{% endif %}" + CHATML,
        ["<|im_start|>", "<|im_end|>"],
    )
    assert made.prompt((SYSTEM, ASK)).text.startswith("<|im_start|>system\nBe brief.<|im_end|>")
    with pytest.raises(PromptError, match="one exchange"):
        made.prompt((SYSTEM, ASK, ANSWER, AGAIN))


@pytest.mark.parametrize(
    ("template", "control", "between"),
    [
        (OPEN_TURNS, ["<|system|>", "<|user|>", "<|assistant|>"], "<|user|>"),
        (LAST_CLOSED_OTHERWISE, ["<|start|>", "<|message|>", "<|return|>", "<|end|>"], "<|end|>"),
    ],
)
def test_the_token_that_ends_an_answer_in_mid_conversation_is_learned_and_stops(template, control, between):
    made = builder(template, control)
    last = "<|return|>" if "<|return|>" in control else made.tokenizer.eos_token
    inner_id, last_id = made.tokenizer.convert_tokens_to_ids([between, last])
    example = made.example((ASK, ANSWER, AGAIN, ANSWER, AGAIN, ANSWER))
    ends = [label for label in example.labels if label in made.stop_ids]
    assert ends == [inner_id, inner_id, last_id]
    assert {inner_id, last_id} <= set(made.stop_ids)
    places = [i for i, label in enumerate(example.labels) if label == inner_id]
    spans = [span for span in example.spans if span.role == "response"]
    plain = [number % V for number in example.ids]
    for place, span in zip(places, spans, strict=False):
        assert made.tokenizer.decode(plain[span.end : place]).strip() == ""
        assert IGNORED not in example.labels[span.start : place + 1]
        assert example.labels[place + 1] == IGNORED
    prompt = made.prompt((ASK, ANSWER, AGAIN))
    assert example.ids[: len(prompt.ids)] == prompt.ids
    single = made.example((ASK, ANSWER))
    assert [label for label in single.labels if label in made.stop_ids] == [last_id]


def test_text_between_two_exchanges_is_no_end_of_an_answer():
    made = builder(
        "{% for m in messages %}{% if m.role == 'user' %}\nHuman <|im_start|>{% endif %}{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %} {% endif %}",
        ["<|im_start|>"],
    )
    assert made.stop_ids == [made.tokenizer.eos_token_id]
    example = made.example((ASK, ANSWER, AGAIN, ANSWER))
    assert [label for label in example.labels if label in made.stop_ids] == [made.tokenizer.eos_token_id]


@pytest.mark.parametrize("family", ["llama3", "chatml", "llama2", "mistral", "gemma", "plain"])
@pytest.mark.parametrize("loss_on", ["response", "all"])
def test_an_answer_that_is_not_to_be_learned_is_context_without_loss(family, loss_on):
    made = PromptBuilder(tiny_tokenizer(family), "chat", V)
    wrong = ANSWER.model_copy(update={"learn": False})
    turns = (SYSTEM, ASK, wrong, AGAIN, Turn(role="response", text="Debate."))
    example, learned = made.example(turns, loss_on), made.example((SYSTEM, ASK, ANSWER, *turns[3:]), loss_on)
    assert example.ids == learned.ids
    first = next(span for span in example.spans if span.role == "response")
    masked = [i for i, label in enumerate(example.labels) if label != learned.labels[i]]
    assert masked == list(range(first.start, masked[-1] + 1))  # the answer and its end-of-turn token
    assert masked[-1] - first.end in (0, 1)  # llama2 has a space before it
    assert {example.labels[i] for i in masked} == {IGNORED}
    assert learned.labels[masked[-1]] in made.stop_ids
    last = made.example((ASK, ANSWER, AGAIN, wrong), loss_on)
    assert last.labels[-1] == IGNORED
    assert loss_on == "all" or last.labels.count(made.stop_ids[0]) == 1


def test_a_question_that_is_not_to_be_learned_has_no_loss_either():
    made = PromptBuilder(tiny_tokenizer("chatml"), "chat", V)
    example = made.example((ASK.model_copy(update={"learn": False}), ANSWER), "all")
    span = next(span for span in example.spans if span.turn == 0)
    assert set(example.labels[span.start : span.end]) == {IGNORED}
    assert IGNORED not in example.labels[: span.start]
    assert example.roles[span.start] == ROLE_NUMBERS["instruction"]


def test_parts_that_a_prompt_template_adds_to_an_answer_go_with_it():
    made = PromptBuilder(tiny_tokenizer("chatml"), "alpaca_as_published", V)
    example = made.example((ASK, ANSWER.model_copy(update={"learn": False}), AGAIN, ANSWER))
    text = made.tokenizer.decode([label for label in example.labels if label != IGNORED])
    assert text == "Response: The vote..\n\n<|im_end|>"


def chatml(content: str, opening: str = "") -> str:
    """ChatML whose messages are written as `content`; opening: what stands only where an answer is asked for."""
    return (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ " + content + " }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n" + opening + "{% endif %}"
    )


CHATML_TOKENS = ["<|im_start|>", "<|im_end|>"]


@pytest.mark.parametrize(
    ("content", "kept"),
    [
        ("m.content", " \n\t x\u00a0 \t\n "),
        ("m.content.lstrip('\n')", " \n\t x\u00a0 \t\n "),
        ("m.content.rstrip('\n ')", " \n\t x\u00a0 \t"),
        ("m.content.strip(' ')", "\n\t x\u00a0 \t\n"),
        ("m.content | trim", "x"),
        ("m.content.strip(' \n\t')", "x\u00a0"),
        ("m.content.lstrip()", "x\u00a0 \t\n "),
    ],
)
def test_the_ends_of_a_message_lose_what_the_template_strips_and_no_more(content, kept):
    made = builder(chatml(content), CHATML_TOKENS)
    text = " \n\t x\u00a0 \t\n "
    example = made.example([ASK, Turn(role="response", text=text)])
    rendered = made.tokenizer.decode([number % V for number in example.ids])
    assert rendered.endswith(f"<|im_start|>assistant\n{kept}<|im_end|>")
    learned = [number for number in example.labels if number != IGNORED]
    assert made.tokenizer.decode(learned) == f"{kept}<|im_end|>"


def test_an_indented_answer_keeps_its_indent():
    """Qwen3's template takes line breaks off an answer, and no more."""
    made = PromptBuilder(tiny_tokenizer("chatml_thinking"), "chat", V)
    example = made.example([ASK, Turn(role="response", text="\n    return x")])
    assert made.tokenizer.decode([number % V for number in example.ids]).endswith("</think>\n\n    return x<|im_end|>")


def test_a_template_that_strips_otherwise_than_a_set_of_characters_is_refused():
    made = builder(chatml("m.content.removeprefix('\n')"), CHATML_TOKENS)
    with pytest.raises(PromptError, match="changes the messages"):
        made.example([ASK, Turn(role="response", text="\n\nx")])


def test_a_thought_that_only_the_question_opens_is_left_out():
    """DeepSeek-R1: examples have none, and training and generation see the same header."""
    made = builder(chatml("m.content", opening="<think>\n"), CHATML_TOKENS)
    prompt, example = made.prompt([ASK]), made.example([ASK, ANSWER])
    assert example.ids[: len(prompt.ids)] == prompt.ids
    assert "think" not in made.tokenizer.decode([number % V for number in prompt.ids])


def test_a_template_that_takes_texts_only_in_pieces_gets_pieces():
    in_pieces = chatml("m.content[0]['text']")
    made, plain = builder(in_pieces, CHATML_TOKENS), builder(chatml("m.content"), CHATML_TOKENS)
    assert made.example([ASK, ANSWER]).ids == plain.example([ASK, ANSWER]).ids
    looped = in_pieces.replace("{{ m.content[0]['text'] }}", "{% for c in m.content %}{{ c.text }}{% endfor %}")
    assert builder(looped, CHATML_TOKENS).example([ASK, ANSWER]).ids == plain.example([ASK, ANSWER]).ids


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ messages[0].content + 1 }}", r"fails on a conversation .*TypeError.*Correct the template"),
        ("{{ range(1000000) | list }}", r"fails on a conversation .*OverflowError"),
        ("{{ messages[0].content | nofilter }}", "refuses a conversation .*nofilter"),
        ("", "chat template is empty.*Give it one"),
        ({"chat": CHATML, "tool_use": CHATML}, r"named 'chat', 'tool_use', and none named 'default'.*Name that one"),
    ],
)
def test_a_template_that_cannot_be_used_is_told(template, message):
    with pytest.raises(PromptError, match=message):
        builder(template)
