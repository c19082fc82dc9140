"""What detectors found, as one JSON line per training row and optimizer step: detections.jsonl beside a checkpoint.

| column | meaning |
|---|---|
| step, opt_step, rank | micro-batch and optimizer step, both from 0; the process |
| row_id, id, source_file, level | number among the training examples; the record's id and what its meta says |
| n_prompt, n_resp | tokens without and with supervision |
| loss_nat, loss_inj | mean cross-entropy without and with the vector (where the row went that far) |
| delta_mean, delta_min, frac_tokens_negative | Δ of the row; of its tokens the least, and the share below 0 |
| D1, D2, probe_cos, probe_proj, probe_norm | see `bulwark.steering.screening.detectors` |
| p_cur, p_ref, dp, drift | p now, of the reference, their difference; p now against that of the untouched model |
| alpha | strength that was added: α, or the probe's a |
| decision | one of `DECISIONS` |
| weight | share of the row's tokens that are learned |

What was not taken or is undefined is null.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bulwark.data.records import Conversation, Tokenised
from bulwark.errors import BulwarkError, RecordError
from bulwark.training.batches import IGNORED, Batch

Records = Sequence[Conversation] | Sequence[Tokenised]

SCORES = (
    "loss_nat", "loss_inj", "delta_mean", "delta_min", "frac_tokens_negative", "D1", "D2", "probe_cos", "probe_proj",
    "probe_norm", "p_cur", "p_ref", "dp", "drift", "alpha",
)  # fmt: skip
DECISIONS = {
    "kept": "learned as it is",
    "dropped": "flagged, and not learned",
    "partly": "some of its tokens flagged, and those not learned",
    "injected": "flagged, and learned with the vector added",
    "no_target": "has no supervised token; never flagged",
    "not_finite": "a score or loss is NaN or infinite; not learned",
}
FLAGGED = ("dropped", "partly", "injected")


def rows_of(
    batch: Batch,
    scores: Mapping[str, Tensor],
    records: Records | None = None,
    **further: Any,
) -> list[dict[str, Any]]:
    """One row with all columns per example of the batch; fillers have none.

    scores: each [batch]; missing columns become null. further: what holds for all rows (a value), or for each (a list).
    """
    counts = (batch.labels != IGNORED).sum(dim=1)
    lengths = batch.attention_mask.sum(dim=1)
    names = [name for name in SCORES if name in scores]
    columns = [counts, lengths, *(scores[name] for name in names)]
    table = torch.stack([column.double().cpu() for column in columns], dim=1).tolist()  # one wait for the device
    rows = []
    for place, (examples, (n_resp, length, *values)) in enumerate(zip(batch.rows, table, strict=True)):
        if not examples:
            continue
        [number] = examples
        record = records[number] if records is not None else None
        defined = {name: value if math.isfinite(value) else None for name, value in zip(names, values, strict=True)}
        row = {"step": None, "opt_step": None, "rank": None, "row_id": number}
        row |= {"id": record.id if record else None}
        row |= {name: record.meta.get(name) if record else None for name in ("source_file", "level")}
        row |= {"n_prompt": int(length - n_resp), "n_resp": int(n_resp)}
        row |= dict.fromkeys(SCORES) | defined | {"decision": None, "weight": None}
        rows.append(row | {name: value[place] if isinstance(value, list) else value for name, value in further.items()})
    return rows


def references_of(
    batch: Batch,
    records: Records,
    references: Mapping[str, Mapping[str, Any]],
    column: str = "ref_projection",
) -> Tensor:
    """A column of a projections file for the rows of a batch, [batch] in fp32.

    NaN where it is null, for rows that the file excludes, and for those of which it has only a part.
    """
    values = []
    for examples in batch.rows:
        row = references[records[examples[0]].id] if examples else {}
        value = None if row.get("excluded") or row.get("truncated") else row.get(column)
        values.append(math.nan if value is None else float(value))
    return torch.tensor(values)


class DetectionLog:
    """The file of all rows, on the main process, in the order of the steps; what an earlier attempt wrote is removed.

    A resumed training goes on where its state was saved: `resume` removes only what was written after that.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._started = False

    def resume(self, size: int) -> None:
        """Cut the file to its first `size` bytes. Raises BulwarkError if there are fewer."""
        present = self.path.stat().st_size if self.path.is_file() else 0
        if present < size:
            raise BulwarkError(
                f"{self.path} has {present} bytes, but had {size} when the state of the training was saved. Put it "
                f"back, or delete {self.path.parent / 'training'} to start afresh."
            )
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as file:
            file.truncate(size)
        self._started = True

    def append(self, rows: Iterable[dict[str, Any]]) -> None:
        """Write the rows of a step."""
        self._start()
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)

    def saved(self) -> int:
        """See that all is on the disk; return the size in bytes."""
        self._start()
        with self.path.open("ab") as file:
            os.fsync(file.fileno())
            return file.tell()

    def summary(self) -> dict[str, Any]:
        """`summary_of` all rows, and of those of each level of the data."""
        self._start()
        with self.path.open(encoding="utf-8") as file:
            rows = [json.loads(line) for line in file]
        levels: dict[str, list[dict[str, Any]]] = {}
        for row in rows:
            if row["level"] is not None:
                levels.setdefault(str(row["level"]), []).append(row)
        return summary_of(rows) | {"levels": {level: summary_of(part) for level, part in sorted(levels.items())}}

    def _start(self) -> None:
        if not self._started:
            self.resume(0)


def summary_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Rows and tokens, how many were flagged, and the mean of every score where it is defined."""
    known = {name: [row[name] for row in rows if row[name] is not None] for name in SCORES}
    decisions = {name: sum(row["decision"] == name for row in rows) for name in DECISIONS}
    flagged = sum(decisions[name] for name in FLAGGED)
    tokens = sum(row["n_resp"] for row in rows)
    blocked = sum(row["n_resp"] * (1 - row["weight"]) for row in rows)
    return {
        "rows": len(rows),
        "flagged": flagged,
        "flagged_share": flagged / len(rows) if rows else None,
        "decisions": decisions,
        "tokens": tokens,
        "blocked_tokens": round(blocked),
        "blocked_tokens_share": blocked / tokens if tokens else None,
        "mean": {name: sum(values) / len(values) if values else None for name, values in known.items()},
    }


def refuse_missing(references: Mapping[str, Any], records: Records, where: str) -> None:
    """Raise RecordError naming the records that have no row among the references."""
    if missing := [record.id for record in records if record.id not in references]:
        shown = ", ".join(missing[:10]) + (", …" if len(missing) > 10 else "")
        raise RecordError(
            f"{where}: {len(missing)} of {len(records)} training records have no row in it ({shown}). "
            "Project the data set that is trained on."
        )
