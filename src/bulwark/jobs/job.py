"""A job: one application of a step, as plain data that travels to whichever process does it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Job:
    """One application of a step: everything a process needs to do it, as plain data.

    `parent` is the checkpoint.json that the step starts from, `output` the one it makes; `inputs` are the files
    that `Settings.inputs()` asked for, by name; `identity` says for whom: model, recipe, seed, and of a
    trial in what it differs from its step (`trial`); `code` is the digest of the code that does it, so that what other
    code has begun is not gone on with; `loading` says how a step that trains nothing holds its model, as plain data of
    `models.placing.loading.Loading`.
    """

    kind: str
    settings: dict[str, Any]
    parent: str
    output: str
    inputs: dict[str, str]
    identity: dict[str, Any]
    log: str
    code: str = ""
    loading: dict[str, Any] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """Where the weights go: beside the manifest."""
        return Path(self.output).parent

    @property
    def state(self) -> Path:
        """Where the state of an unfinished training lies; the workflow does not know it, so it survives a failure."""
        return self.folder / "training"

    @property
    def seed(self) -> int:
        return int(self.identity["seed"])

    def write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self), indent=1), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Job:
        return cls(**json.loads(path.read_text(encoding="utf-8")))
