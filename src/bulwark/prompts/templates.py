"""Prompt templates: how turns are arranged in messages, by name. A model's is named in config/models/."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Template:
    """How turns are arranged in messages.

    With `system_message` the instruction goes there and the data into `user_message`; without it, instruction and
    data share the user message, separated by a blank line. After the first response, `later_instruction` is put before
    the data. chat: a chat template that is rendered in the place of the tokenizer's.
    """

    system_message: str | None = None
    user_message: str = "{data}"
    later_instruction: str = "{instruction}"
    no_data: str = ""
    shortest_data: int = 1
    response: str = "{response}"
    response_header: str = "Response: "
    chat: str | None = None


def _without_tokens(user: str, assistant: str) -> str:
    """A chat template without control tokens: words before each message, and a line break behind it."""
    return (
        f"{{% for message in messages %}}{{% if message.role == 'user' %}}{user}"
        f"{{% elif message.role == 'assistant' %}}{assistant}{{% endif %}}{{{{ message.content }}}}\n{{% endfor %}}"
        f"{{% if add_generation_prompt %}}{assistant}{{% endif %}}"
    )


_PREAMBLE = (
    "Below is an instruction that describes a task, paired with an input that provides further context.\n"
    "Write a response that appropriately completes the request.\n\n"
)
_ALPACA = Template(
    system_message=_PREAMBLE + "Instruction:\n{instruction}\n",
    user_message="Input:\n{data}\n",
    later_instruction="Instruction:\n{instruction}\n",
    no_data="No input",
)

TEMPLATES: dict[str, Template] = {
    "chat": Template(),
    # The prompt of ASIDE's experiments, without the full stop and the "Response:" that its code adds to answers.
    "alpaca": _ALPACA,
    # The same with both, and with data of a single character replaced, as in the published code.
    "alpaca_as_published": replace(_ALPACA, response="Response: {response}.\n\n", response_header="", shortest_data=2),
    # The formats between which TamperBench's sweeps choose (arXiv 2602.06911), whatever the model's own is. Theirs have
    # no line break in `plain` and `instruction_response`; here there is one, so that no token belongs to two messages.
    "plain": Template(chat=_without_tokens("", "")),
    "generic_chat": Template(chat=_without_tokens("User: ", "Assistant: ")),
    "instruction_response": Template(chat=_without_tokens("INSTRUCTION: ", "RESPONSE: ")),
}
