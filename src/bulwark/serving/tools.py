"""Tools over a chat format that knows none: they are described in the system turn and called in the answer.

The form is that of Hermes and Qwen, an object with name and arguments between <tool_call> and </tool_call>; models
trained on other forms may not take to it. Only what the model writes is searched for calls; what a tool returned is
data, whatever it holds.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from bulwark.serving.asked import Refused

_CALL = re.compile(r"<tool_call>\s*(\{.*?\})\s*(?:</tool_call>|\Z)", re.DOTALL)
_OFFER = """\
You can call the tools below. To call one, write
<tool_call>
{{"name": "its name", "arguments": {{…}}}}
</tool_call>
{often}, and nothing after it. You are then given what it returned, as data.{must}

{tools}"""
_MUST = {"required": " Your next answer has to be such a call."}


def offered(
    tools: Sequence[Mapping[str, Any]] | None, choice: str | Mapping[str, Any] | None, parallel: bool = True
) -> str:
    """What the model is told of the tools; "" if there are none, or none is to be called.

    choice, parallel: OpenAI's tool_choice and parallel_tool_calls. What they require is told to the model, which may
    still do otherwise.
    Raises Refused for what is no function.
    """
    named = choice.get("function", {}).get("name") if isinstance(choice, Mapping) else None
    if isinstance(choice, str) and choice not in ("none", "auto", "required"):
        raise Refused(f'tool_choice is "{choice}", not none, auto, required or a function.', "tool_choice")
    functions = []
    for number, tool in enumerate(tools or ()):
        function = tool.get("function")
        if tool.get("type") != "function" or not isinstance(function, Mapping) or not function.get("name"):
            raise Refused(f"tools[{number}] is no function with a name.", f"tools[{number}]")
        functions.append({key: function[key] for key in ("name", "description", "parameters") if function.get(key)})
    if named is not None and named not in [function["name"] for function in functions]:
        raise Refused(f'tool_choice names the function "{named}", which is not among the tools.', "tool_choice")
    if not functions or choice == "none":
        return ""
    must = f" Your next answer has to call {named}." if named else _MUST.get(str(choice), "")
    often = "once for each call" if parallel else "once"
    return _OFFER.format(
        must=must, often=often, tools="\n".join(json.dumps(function, ensure_ascii=False) for function in functions)
    )


def written(calls: Any, where: str) -> list[str]:
    """Calls of an earlier answer, in the form in which the model writes them. Raises Refused for what is no call."""
    texts = []
    for number, call in enumerate(calls or ()):
        function = call.get("function") if isinstance(call, Mapping) else None
        try:
            given = function["arguments"]
            arguments = json.loads(given) if isinstance(given, str) and given.strip() else given or {}
            texts.append(_in_marks({"name": str(function["name"]), "arguments": arguments}))
        except (TypeError, KeyError, ValueError):
            raise Refused(f"{where}[{number}] is no call of a function with arguments in JSON.", where) from None
    return texts


def calls_in(text: str) -> tuple[str, list[dict[str, Any]]]:
    """(the text without them, the calls that an answer holds, as OpenAI's tool_calls). What is no call stays text."""
    calls: list[dict[str, Any]] = []

    def taken(found: re.Match[str]) -> str:
        try:
            call = json.loads(found[1])
            name, arguments = call["name"], call.get("arguments", {})
        except (ValueError, KeyError, RecursionError):
            return found[0]
        if not isinstance(name, str) or not isinstance(arguments, dict):
            return found[0]
        function = {"name": name, "arguments": json.dumps(arguments, ensure_ascii=False)}
        calls.append({"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": function})
        return ""

    rest = _CALL.sub(taken, text)
    return (rest.strip() if calls else text), calls


def _in_marks(call: Mapping[str, Any]) -> str:
    return f"<tool_call>\n{json.dumps(call, ensure_ascii=False)}\n</tool_call>"
