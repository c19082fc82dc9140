"""Records: conversations as role-tagged turns, tokenised examples, and JSON Lines files of any closed schema.

Each turn has a role: `system` and `instruction` turns are to be obeyed, `data` and `tool` turns (what a tool returned)
are material to work on, a `response` turn is the model's (ASIDE, Sec. 3). All later stages take the role from here; it
is never guessed from text. A model tells two of these roles apart or more, see `role_numbers`.

A file that cannot be used stops the reader with `RecordError`: file, line, reason, remedy.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import pydantic
from pydantic_core import ErrorDetails

from bulwark.errors import RecordError, nearest
from bulwark.files import written_whole
from bulwark.settings import Closed, Text

TurnRole = Literal["system", "instruction", "tool", "data", "response"]
EmbeddingRole = Literal["system", "instruction", "tool", "data"]

ROLES: tuple[EmbeddingRole, ...] = ("instruction", "data")
"""The roles of a model that names none, besides that of responses."""
MATERIAL = ("data", "tool")
"""The roles of turns in which nothing is an order."""


def role_numbers(roles: Sequence[str] = ROLES) -> dict[str, int]:
    """The number that carries a turn's role in a token id, `id + vocabulary * number`: response 0, `roles[k]` k + 1.

    Where the model lacks the role of a turn, a system turn is an instruction to it, and what a tool returned is data.
    """
    numbers = {"response": 0} | {role: number for number, role in enumerate(roles, start=1)}
    return {"system": numbers["instruction"], "tool": numbers["data"]} | numbers


ROLE_NUMBERS = role_numbers()

_DIGITS = 1000  # of an integer: far below where Python refuses to convert

Schema = TypeVar("Schema", bound=pydantic.BaseModel)


class Turn(Closed):
    """A piece of text with one role. learn: false in a training example keeps it as context, without loss."""

    role: TurnRole
    text: str
    learn: bool = pydantic.Field(default=True, exclude_if=bool)  # written only where it says something

    @pydantic.field_validator("text")
    @classmethod
    def _not_blank(cls, text: str) -> str:
        if not text.strip():
            raise ValueError("the text is empty; leave the turn out instead")
        return text

    @property
    def is_material(self) -> bool:
        """Whether nothing in it is an order: it is data, or what a tool returned."""
        return self.role in MATERIAL


class Conversation(Closed):
    """A conversation: turns to train on or to answer, in order."""

    id: str
    turns: tuple[Turn, ...]
    meta: dict[str, Any] = pydantic.Field(default_factory=dict)

    @pydantic.field_validator("turns")
    @classmethod
    def _not_empty(cls, turns: tuple[Turn, ...]) -> tuple[Turn, ...]:
        if not turns:
            raise ValueError("a conversation needs at least one turn")
        return turns


class Tokenised(Closed):
    """A training example tokenised elsewhere: ids without roles, labels (the id, or -100 for no loss), no padding."""

    id: str
    input_ids: tuple[int, ...] = pydantic.Field(min_length=1)
    labels: tuple[int, ...]
    meta: dict[str, Any] = pydantic.Field(default_factory=dict)

    @pydantic.model_validator(mode="after")
    def _parallel(self) -> Tokenised:
        if len(self.labels) != len(self.input_ids):
            raise ValueError(f"{len(self.labels)} labels for {len(self.input_ids)} tokens; there must be one each")
        if min(self.input_ids) < 0 or any(label < 0 and label != -100 for label in self.labels):
            raise ValueError("ids count from 0, and a token without loss has the label -100")
        return self


class Passage(Closed):
    """Raw text to train on, every token of it and without a chat template: a chunk of a corpus."""

    id: str
    text: Text
    meta: dict[str, Any] = pydantic.Field(default_factory=dict)


class Preference(Closed):
    """Two responses to one prompt, of which `chosen` is to be preferred. turns: the prompt, up to the response."""

    id: str
    turns: tuple[Turn, ...] = pydantic.Field(min_length=1)
    chosen: Text
    rejected: Text
    meta: dict[str, Any] = pydantic.Field(default_factory=dict)

    @pydantic.model_validator(mode="after")
    def _two_answers(self) -> Preference:
        if self.turns[-1].role == "response":
            raise ValueError("the prompt ends with a response; the responses are chosen and rejected")
        if self.chosen == self.rejected:
            raise ValueError("chosen and rejected are the same text, so neither can be preferred; remove the record")
        return self

    def conversation(self, side: Literal["chosen", "rejected"]) -> Conversation:
        """The prompt with one of its two responses, as a conversation to train on."""
        answer = Turn(role="response", text=getattr(self, side))
        return Conversation(id=self.id, turns=(*self.turns, answer), meta=self.meta)


Trainable = Conversation | Tokenised | Passage
TRAINABLE: dict[str, type[Trainable]] = {"conversation": Conversation, "tokenised": Tokenised, "passage": Passage}
SCHEMAS: dict[str, type[Trainable] | type[Preference]] = {
    **TRAINABLE,
    "preference": Preference,
}
"""The kinds of records that belong to no benchmark; each benchmark module defines its kind as `Record`."""


def read_training_records(path: str | Path) -> list[Any]:
    """Read a file of conversations, tokenised examples and passages; the fields of each line tell what it is.

    Raises RecordError as `read_records` does.
    """
    return read_records(path, _trainable)


def _trainable(line: str) -> type[Trainable]:
    """What a line of a training file is to be."""
    if _has_field(line, "input_ids"):
        return Tokenised
    return Passage if _has_field(line, "text") and not _has_field(line, "turns") else Conversation


def read_records(
    path: str | Path,
    schema: type[Schema] | Callable[[str], type[Schema]] = Conversation,  # type: ignore[assignment]
) -> list[Schema]:
    """Read a JSON Lines file and check every line against `schema` (or what it returns for the line), ids unique.

    Raises RecordError naming file, line, reason and remedy: missing field, unknown field, wrong type, empty text,
    invalid UTF-8, invalid JSON, blank line, duplicate id, empty file.
    """
    path = Path(path)
    records: list[Schema] = [
        validate_line(line, schema if isinstance(schema, type) else schema(line), place)
        for place, line in lines_of(path)
    ]
    if not records:
        raise RecordError(f"{path} holds no record. Make it again, or correct the source it is made from.")
    refuse_duplicate_ids((f"{path}, line {number}", record) for number, record in enumerate(records, start=1))
    return records


def write_records(path: str | Path, records: Iterable[pydantic.BaseModel | dict[str, Any] | Any]) -> None:
    """Write records (models, dataclasses or dicts) as JSON Lines; the file appears whole or not at all."""
    with written_whole(path) as file:
        file.writelines(json_line(record) + "\n" for record in records)


def json_line(record: pydantic.BaseModel | dict[str, Any] | Any) -> str:
    """One record as one line of JSON."""
    if isinstance(record, pydantic.BaseModel):
        return record.model_dump_json()
    if dataclasses.is_dataclass(record) and not isinstance(record, type):
        record = dataclasses.asdict(record)
    return json.dumps(record, ensure_ascii=False, allow_nan=False)


def lines_of(path: Path) -> Iterator[tuple[str, str]]:
    """Yield ("file, line n", text) of a text file. Raises RecordError for a missing file, bad UTF-8, a blank line."""
    if not path.is_file():
        raise RecordError(f"{path} does not exist or is not a file. Check the path.")
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            place = f"{path}, line {number}"
            try:
                line = raw.decode("utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                raise RecordError(
                    f"{place}: not valid UTF-8 (byte {error.start + 1} of the line, 0x{raw[error.start]:02x}). "
                    "Save the file as UTF-8."
                ) from error
            if not line.strip():
                raise RecordError(f"{place}: the line is blank. Remove it: one record per line.")
            yield place, line


def validate_line(line: str, schema: type[Schema], place: str) -> Schema:
    """Check one JSON object against `schema`. JSON mode: types are strict, but an array is accepted for a tuple."""
    try:
        return schema.model_validate_json(line)
    except pydantic.ValidationError as error:
        raise RecordError(f"{place}: {explain(error, schema)}") from error


def explain(error: pydantic.ValidationError, schema: type[pydantic.BaseModel]) -> str:
    """A pydantic error as one sentence per problem, with what to do."""
    return " ".join(_sentence(problem, schema) for problem in error.errors(include_url=False))


def refuse_duplicate_ids(records: Iterable[tuple[str, Any]]) -> None:
    """Raise RecordError when two of the (place, record) pairs share an `id`; records without an id pass."""
    seen: dict[Any, str] = {}
    for place, record in records:
        identity = getattr(record, "id", None)
        if identity is None:
            continue
        if identity in seen:
            first = seen[identity]
            raise RecordError(f'{place}: duplicate id "{identity}", first at {first}. Give every record its own.')
        seen[identity] = place


def parsed(text: str) -> Any:
    """What a JSON text says.

    Raises ValueError where it is not valid (json.JSONDecodeError), names a key twice in one object (of which Python
    keeps the last, silently), or holds what cannot be read: deep nesting, an integer of thousands of digits.
    """
    try:
        return DECODER.decode(text)
    except RecursionError:
        raise ValueError("lists or objects are nested too deep") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f'an object has the key "{twice}" twice')
    return found


def _integer(digits: str) -> int:
    if len(digits) > _DIGITS:
        raise ValueError(f"an integer has {len(digits.lstrip('-'))} digits")
    return int(digits)


DECODER = json.JSONDecoder(object_pairs_hook=_once, parse_int=_integer)
"""For the texts of users; `parsed` says what is an error to it, beside a RecursionError."""


def _has_field(line: str, field: str) -> bool:
    try:
        return field in json.loads(line)
    except (ValueError, TypeError, RecursionError):
        return False  # `read_records` says what is wrong with it


def _sentence(problem: ErrorDetails, schema: type[pydantic.BaseModel]) -> str:
    field = ".".join(str(part) for part in problem["loc"])
    kind = problem["type"]
    given = repr(problem["input"])
    given = given if len(given) <= 60 else f"{given[:57]}..."
    if kind == "json_invalid":
        return f"not valid JSON ({problem['ctx']['error']}). Write one JSON object per line."
    if kind == "missing":
        return f'the field "{field}" is missing. Add it, or map another field to it.'
    if kind == "extra_forbidden":
        hint = nearest(str(problem["loc"][-1]), schema.model_fields) if len(problem["loc"]) == 1 else ""
        return f'the field "{field}" is unknown. Remove it.{hint}'
    if kind == "value_error":
        where = f'the field "{field}"' if field else "the record"
        return f"{where}: {problem['ctx']['error']}."
    what = problem["msg"].removeprefix("Input should be ")
    if not field:
        return f"the record should be {what}, not {given}. Write one JSON object per line."
    return f'the field "{field}" should be {what}, not {given}. Correct the value.'
