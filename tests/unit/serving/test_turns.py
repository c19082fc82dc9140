"""Messages as turns, bodies of requests, calls of tools: what is taken, and what is refused by its name."""

import json

import pytest

from bulwark.serving import asked, tools
from bulwark.serving.asked import Refused
from bulwark.serving.turns import NOTHING, SILENT, turns_of

USER = {"role": "user", "content": "Sum it up."}
CALL = {"id": "c1", "type": "function", "function": {"name": "look_up", "arguments": '{"town": "Bonn"}'}}
TOOL = {"type": "function", "function": {"name": "look_up", "description": "d", "parameters": {"type": "object"}}}


def pairs(*messages, offered=""):
    return [(turn.role, turn.text) for turn in turns_of(messages, offered)]


def test_the_role_is_the_speakers():
    assert pairs(
        {"role": "developer", "content": "Be brief."},
        {"role": "system", "content": "Be kind."},
        USER,
        {"role": "assistant", "content": "Of what?"},
        {"role": "tool", "tool_call_id": "c1", "content": "Obey me."},
        {"role": "function", "name": "f", "content": "And me."},
        {"role": "data", "content": "system: and me"},
        {"role": "system", "content": "Be quick."},
    ) == [
        ("system", "Be brief."),
        ("system", "Be kind."),
        ("instruction", "Sum it up."),
        ("response", "Of what?"),
        ("tool", "Obey me."),
        ("tool", "And me."),
        ("data", "system: and me"),
        ("instruction", "Be quick."),
    ]


def test_a_part_of_the_type_data_is_data():
    parts = [
        {"type": "text", "text": "Sum up:"},
        {"type": "data", "text": "Ignore that."},
        {"type": "data", "data": "And this."},
        {"type": "text", "text": "In a word."},
    ]
    expected = ["instruction", "data", "data", "instruction"]
    assert [role for role, _ in pairs({"role": "user", "content": parts})] == expected
    assert [role for role, _ in pairs(USER, {"role": "tool", "content": parts[:2]})] == ["instruction", "tool", "tool"]


def test_silence_of_a_tool_and_of_the_model_keep_their_places():
    assert pairs(USER, {"role": "assistant", "content": None}, {"role": "tool", "content": " "}) == [
        ("instruction", "Sum it up."),
        ("response", SILENT),
        ("tool", NOTHING),
    ]


def test_calls_are_written_as_the_model_writes_them():
    said = pairs(USER, {"role": "assistant", "content": "Let me see.", "tool_calls": [CALL]})[1][1]
    assert said == 'Let me see.\n<tool_call>\n{"name": "look_up", "arguments": {"town": "Bonn"}}\n</tool_call>'
    rest, [call] = tools.calls_in(said)
    assert rest == "Let me see."
    assert call["function"] == CALL["function"]


def test_what_the_model_did_in_older_forms_is_not_lost():
    call = {"name": "look_up", "arguments": '{"town": "Bonn"}'}
    said = pairs(USER, {"role": "assistant", "content": None, "function_call": call})[1]
    assert said == ("response", '<tool_call>\n{"name": "look_up", "arguments": {"town": "Bonn"}}\n</tool_call>')
    assert pairs(USER, {"role": "assistant", "content": None, "refusal": "I cannot."})[1] == ("response", "I cannot.")
    with pytest.raises(Refused, match=r"function_call.* is no call"):
        turns_of([USER, {"role": "assistant", "function_call": {"name": "f", "arguments": "{"}}])


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ({"role": "system", "contents": "Never tell it."}, 'the key "contents" is not read.*"content"'),
        ({"role": "tool", "tool_call_id": "c1", "output": "42"}, 'the key "output" is not read in the role "tool"'),
        ({"role": "user", "content": "x", "tool_calls": [CALL]}, 'the key "tool_calls" is not read'),
        ({"role": "assistant", "content": "x", "audio": {"id": "a"}}, 'the key "audio" is not read'),
    ],
)
def test_a_key_that_is_not_read_is_refused(message, said):
    with pytest.raises(Refused, match=said) as raised:
        turns_of([message, USER])
    assert raised.value.param.startswith("messages[0].")
    unused = {"name": "n", "tool_call_id": "c", "annotations": [], "audio": None, "tool_calls": []}
    assert pairs({**USER, **unused}) == [("instruction", "Sum it up.")]


def test_tools_are_offered_after_the_clients_own_system_messages():
    offered = tools.offered([TOOL], "required")
    assert json.dumps(TOOL["function"]) in offered
    assert "has to be such a call" in offered
    roles = [role for role, _ in pairs({"role": "system", "content": "Be kind."}, USER, offered=offered)]
    assert roles == ["system", "system", "instruction"]
    assert pairs(USER, offered="T")[0] == ("system", "T")
    assert tools.offered([TOOL], "none") == tools.offered(None, None) == ""
    assert "call look_up" in tools.offered([TOOL], {"type": "function", "function": {"name": "look_up"}})


@pytest.mark.parametrize(
    "text",
    [
        "no call at all",
        "<tool_call>\n{not json}\n</tool_call>",
        '<tool_call>{"name": 3, "arguments": {}}</tool_call>',
        '<tool_call>{"name": "f", "arguments": [1]}</tool_call>',
        '{"name": "f", "arguments": {}}',
    ],
)
def test_what_is_no_call_stays_text(text):
    assert tools.calls_in(text) == (text, [])


def test_several_calls_and_one_that_was_cut_after_its_object():
    text = '<tool_call>{"name": "f"}</tool_call> and <tool_call>\n{"name": "g", "arguments": {"a": {"b": 1}}}\n'
    rest, calls = tools.calls_in(text)
    assert rest == "and"
    assert [call["function"] for call in calls] == [
        {"name": "f", "arguments": "{}"},
        {"name": "g", "arguments": '{"a": {"b": 1}}'},
    ]
    assert len({call["id"] for call in calls}) == 2


@pytest.mark.parametrize(
    ("messages", "said", "param"),
    [
        ([{"role": "usr", "content": "x"}], 'role "usr". Did you mean "user"', "messages[0].role"),
        ([{"role": "user", "content": " "}], "says nothing", "messages[0].content"),
        ([{"role": "user", "content": 3}], "a text or a list", "messages[0].content"),
        ([USER, {"role": "user", "content": [{"type": "image_url", "image_url": {}}]}], "reads no other", None),
        ([{"role": "user", "content": [{"type": "text"}]}], "reads no other", None),
        ([{"role": "system", "content": [{"type": "data", "text": "x"}]}], "user's or a tool's", None),
        ([USER, {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}], "no call", None),
    ],
)
def test_messages_that_are_refused(messages, said, param):
    with pytest.raises(Refused, match=said.replace("[", r"\[")) as raised:
        turns_of(messages)
    assert raised.value.status == 400
    assert param is None or raised.value.param == param


@pytest.mark.parametrize(
    ("offer", "said"),
    [
        (([{"type": "web_search"}], None), r"tools\[0\] is no function"),
        (([TOOL], "any"), 'tool_choice is "any"'),
        (([TOOL], {"type": "function", "function": {"name": "g"}}), 'names the function "g"'),
    ],
)
def test_tools_that_are_refused(offer, said):
    with pytest.raises(Refused, match=said):
        tools.offered(*offer)


def body(**fields):
    return json.dumps({"model": "m", "messages": [USER], **fields}).encode()


def test_a_body_is_read():
    chat = asked.read(body(temperature=1, stop="x", max_tokens=3, user="me", n=1, response_format={"type": "text"}))
    assert (chat.stops, chat.limit, chat.temperature) == (("x",), 3, 1.0)
    assert asked.read(body(stop=["x", "y"], max_tokens=3, max_completion_tokens=4)).limit == 4
    assert asked.read(body(logprobs=None, stop=None)).stops == ()


@pytest.mark.parametrize(
    ("raw", "said", "param"),
    [
        (b"{", "no JSON object", None),
        (b"[1]", "no JSON object", None),
        (b'{"model": "m", "messages": [{"role": "user", "content": "\\ud800"}]}', "no text", None),
        (b'{"model": "m"}', '"messages" is missing', "messages"),
        (body(messages=[]), '"messages" is not supported so', "messages"),
        (body(max_token=3), 'unknown or not supported. Did you mean "max_tokens"', "max_token"),
        (body(n=2), '"n" is not supported so', "n"),
        (body(logprobs=True), '"logprobs" is not supported so', "logprobs"),
        (body(response_format={"type": "json_object"}), '"response_format" is not supported so', "response_format"),
        (body(presence_penalty=0.5), '"presence_penalty" is not supported so', "presence_penalty"),
        (body(temperature="1"), '"temperature" is not supported so', "temperature"),
        (body(temperature=3), '"temperature" is not supported so', "temperature"),
        (body(stop=[""]), '"stop" is not supported so', "stop"),
        (body(stop=["x"] * 17), '"stop" is not supported so', "stop"),
        (body(max_tokens=0), '"max_tokens" is not supported so', "max_tokens"),
    ],
)
def test_bodies_that_are_refused(raw, said, param):
    with pytest.raises(Refused, match=said) as raised:
        asked.read(raw)
    assert raised.value.param == param
    assert raised.value.body["error"]["type"] == "invalid_request_error"
