"""Preferences as transcripts: two whole dialogues that differ in the last answer (HH-RLHF, arXiv 2204.05862).

A transcript is one text, "\\n\\nHuman: … \\n\\nAssistant: …", as often as the two have spoken.
"""

from __future__ import annotations

import re
from typing import Any

from bulwark.data.messages import blank, short
from bulwark.errors import RecordError

_SPEAKER = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")
_ROLES = {"Human": "instruction", "Assistant": "response"}


def from_transcripts(row: dict[str, Any], place: str) -> dict[str, Any]:
    """The fields of a `Preference` from the columns "chosen" and "rejected".

    The turns that both have in common are the prompt. A speaker who goes on is joined with a blank line.
    Raises RecordError, naming `place`, if a column is no transcript, does not end with the assistant, or the turns
    before its last answer are not those of the other.
    """
    (prompt, chosen), (other, rejected) = (_divided(row, column, place) for column in ("chosen", "rejected"))
    if prompt != other:
        turn = next((n for n, pair in enumerate(zip(prompt, other, strict=False)) if pair[0] != pair[1]), None)
        where = f"turn {turn + 1} differs" if turn is not None else f"{len(prompt)} turns against {len(other)}"
        raise RecordError(
            f"{place}: chosen and rejected answer different prompts ({where}), so neither can be preferred. Remove the "
            "record."
        )
    fields = {"turns": prompt, "chosen": chosen, "rejected": rejected}
    return fields | ({"id": row["id"]} if "id" in row else {})


def _divided(row: dict[str, Any], column: str, place: str) -> tuple[list[dict[str, str]], str]:
    """The turns of a transcript up to the last answer, and that answer."""
    text = row.get(column)
    if not isinstance(text, str):
        raise RecordError(
            f'{place}: the format "transcripts" needs a text in the column "{column}"; it is {short(text)}.'
        )
    before, *pieces = _SPEAKER.split(text)
    if not blank(before) or not pieces:
        raise RecordError(f'{place}: {column} does not begin with "Human:" or "Assistant:", but with {short(text)}.')
    turns: list[dict[str, str]] = []
    for speaker, said in zip(pieces[::2], pieces[1::2], strict=True):
        if blank(said):
            raise RecordError(f"{place}: {speaker} says nothing in {column}. Fill it, or remove the record.")
        if turns and turns[-1]["role"] == _ROLES[speaker]:
            turns[-1]["text"] += f"\n\n{said.strip()}"
        else:
            turns.append({"role": _ROLES[speaker], "text": said.strip()})
    if turns[-1]["role"] != "response":
        raise RecordError(f"{place}: {column} does not end with the assistant. Complete it, or remove the record.")
    return turns[:-1], turns[-1]["text"]
