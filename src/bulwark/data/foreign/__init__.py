"""Files of other projects, read as they are: a module per `format` of a data set, found by its name.

Such a module has `rows(path, parts)`: the rows of a data set, in the schema of its kind, from a file or a folder.
parts: the files below the folder with what the configuration says of each. It raises RecordError, with place and
remedy, for what it cannot read.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bulwark.data.records import write_records
from bulwark.settings import module_named

FOREIGN = frozenset({"agentdojo", "bipia", "rules"})
"""The formats, as a configuration may name them."""


def unpacked(format: str, source: str | Path, parts: Mapping[str, Mapping[str, Any]], folder: Path) -> Path:
    """Convert a source in a format of another project to a file of JSON Lines in `folder`."""
    target = Path(folder) / f"{format}.jsonl"
    write_records(target, module_named(__name__, format, "format").rows(Path(source), parts))
    return target
