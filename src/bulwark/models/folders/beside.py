"""What transformers reads from files beside the weights, or leaves unread and says nothing: stop tokens, templates."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bulwark.errors import CheckpointError

log = logging.getLogger(__name__)

_GENERATION = "generation_config.json"
_PROCESSORS_TEMPLATE = "chat_template.json"  # where processors of older versions of transformers keep it
_READ = {"chat_template.jinja", _PROCESSORS_TEMPLATE}


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises CheckpointError for anything else in it."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{file}: not readable as JSON ({error}): the file is cut or was changed.") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{file}: expected a JSON object, found {type(content).__name__}.")
    return content


def check_generation(folder: Path, config: Mapping[str, Any]) -> None:
    """Raise CheckpointError if generation_config.json cannot be read, or names stop tokens that the model cannot write.

    transformers takes its own defaults in place of a file that it cannot read, and says nothing. config: the content
    of config.json, whose vocabulary the ids have to be in. Stop strings, which nothing here reads, are told in the log.
    """
    file = folder / _GENERATION
    if not file.is_file():
        return
    content = read_json(file)
    given = content.get("eos_token_id")
    ids = given if isinstance(given, list) else [] if given is None else [given]
    size = config.get("vocab_size", (config.get("text_config") or {}).get("vocab_size"))
    for number in ids:
        whole = isinstance(number, int) and not isinstance(number, bool) and number >= 0
        if not whole or (isinstance(size, int) and number >= size):
            among = f" below {size}" if isinstance(size, int) else ""
            raise CheckpointError(
                f"{file}: eos_token_id: {json.dumps(number)} is no id of the model's vocabulary. Write whole numbers "
                f"from 0{among}, one or a list of them."
            )
    if content.get("stop_strings"):
        log.warning(
            "%s: stop_strings are not used: answers end at tokens. Name the ids of their tokens in eos_token_id.", file
        )


def template_beside(folder: Path) -> str | None:
    """The chat template that a processor keeps beside the weights, for a tokenizer that has none; None without one.

    Raises CheckpointError if a file is named as if it held a template, but is not one that is read.
    """
    if (folder / _PROCESSORS_TEMPLATE).is_file():
        template = read_json(folder / _PROCESSORS_TEMPLATE).get("chat_template")
        if not isinstance(template, str):
            raise CheckpointError(f'{folder / _PROCESSORS_TEMPLATE}: there is no text under "chat_template".')
        return template
    unread = sorted(path.name for path in folder.glob("chat_template*") if path.is_file() and path.name not in _READ)
    if unread:
        raise CheckpointError(
            f"{folder / unread[0]}: the tokenizer has no chat template, and this file's name is none that is read. "
            "Name it chat_template.jinja, or move it away to write prompts without a template."
        )
    return None
