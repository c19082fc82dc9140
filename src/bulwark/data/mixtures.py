"""Mixtures: the records of several data sets in one, in given proportions.

TAR's retain set for biosecurity is one (Tamirisa et al. 2024, arXiv 2408.00761): all of a corpus and half as many
conversations.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from bulwark.data.readers import shuffled
from bulwark.data.records import read_training_records
from bulwark.errors import RecordError

Amount = int | float | Literal["all"]


def mixed(
    files: Mapping[str, str | Path],
    amounts: Mapping[str, Amount],
    *,
    shuffle_seed: int | None = None,
    limit: int | None = None,
) -> list[Any]:
    """The records of `files` {data set: path}, from each its first ones, as many as `amounts` says.

    amounts: "all"; a number; or, as a float, the number as a multiple of the first data set's (rounded down). The kinds
    may differ. Ids begin with the data set's name, and `meta` has it under "mixed_from". Without a seed the data sets
    follow each other.
    Raises RecordError if a data set has fewer records than are asked for, or none are.
    """
    records: list[Any] = []
    first = 0
    for name, amount in amounts.items():
        present = read_training_records(files[name])
        wanted = amount if isinstance(amount, int) else len(present) if amount == "all" else int(amount * first)
        if not 0 < wanted <= len(present):
            raise RecordError(
                f"{files[name]} has {len(present)} records, and the mixture takes {wanted} of them (mixture.{name}: "
                f"{amount}). Change the amount."
            )
        first = first or wanted
        for record in present[:wanted]:
            meta = {**record.meta, "mixed_from": name}
            records.append(record.model_copy(update={"id": f"{name}-{record.id}", "meta": meta}))
    return shuffled(records, shuffle_seed)[:limit]
