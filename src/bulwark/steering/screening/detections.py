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

What was not taken or is undefined is null. The columns are those of a scatter plot or an ROC curve over the data's
levels.
"""

from __future__ import annotations

import json
import math
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bulwark.errors import BulwarkError, RecordError
from bulwark.training.batches import IGNORED, Batch

if TYPE_CHECKING:
    from bulwark.data.records import Conversation, Tokenised

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
    records: Sequence[Conversation] | Sequence[Tokenised] | None = None,
    **told: Any,
) -> list[dict[str, Any]]:
    """One row with all columns per example of the batch; fillers have none.

    scores: each [batch]; missing columns become null. told: what holds for all rows (a value), or for each (a list).
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
        found = dict(zip(names, values, strict=True))
        row = {"step": None, "opt_step": None, "rank": None, "row_id": number}
        row |= {"id": record.id if record else None}
        row |= {name: record.meta.get(name) if record else None for name in ("source_file", "level")}
        row |= {"n_prompt": int(length - n_resp), "n_resp": int(n_resp)}
        row |= {name: _defined(found.get(name)) for name in SCORES} | {"decision": None, "weight": None}
        rows.append(row | {name: value[place] if isinstance(value, list) else value for name, value in told.items()})
    return rows


def references_of(
    batch: Batch,
    records: Sequence[Conversation] | Sequence[Tokenised],
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
    """The file of all rows, on the main process, in the order of the steps, and what it amounts to.

    A resumed training goes on where its state was saved: `resume` forgets what was written after that.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.totals = _Totals()
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
        self.totals = _Totals()
        with self.path.open(encoding="utf-8") as file:
            self.totals.add(json.loads(line) for line in file)
        self._started = True

    def append(self, rows: Iterable[dict[str, Any]]) -> None:
        """Write the rows of a step."""
        if not self._started:
            self.resume(0)
        rows = list(rows)
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
        self.totals.add(rows)

    def saved(self) -> int:
        """See that all is on the disk; return the size in bytes."""
        if not self._started:
            self.resume(0)
        with self.path.open("ab") as file:
            os.fsync(file.fileno())
            return file.tell()

    def summary(self) -> dict[str, Any]:
        """Rows and tokens, how many were flagged, and mean scores, altogether and for each level of the data."""
        if not self._started:
            self.resume(0)
        return self.totals.summary()


class _Totals:
    """Counts and sums over rows."""

    def __init__(self) -> None:
        self.groups: dict[str, _Group] = defaultdict(_Group)

    def add(self, rows: Iterable[Mapping[str, Any]]) -> None:
        for row in rows:
            self.groups["all"].add(row)
            if row["level"] is not None:
                self.groups[f"level {row['level']}"].add(row)

    def summary(self) -> dict[str, Any]:
        levels = {name.removeprefix("level "): group for name, group in sorted(self.groups.items()) if name != "all"}
        return self.groups["all"].summary() | {"levels": {name: group.summary() for name, group in levels.items()}}


class _Group:
    def __init__(self) -> None:
        self.decisions: dict[str, int] = dict.fromkeys(DECISIONS, 0)
        self.tokens, self.blocked_tokens = 0, 0.0
        self.sums: dict[str, list[float]] = {name: [0, 0.0] for name in SCORES}

    def add(self, row: Mapping[str, Any]) -> None:
        self.decisions[row["decision"]] += 1
        self.tokens += row["n_resp"]
        self.blocked_tokens += row["n_resp"] * (1 - row["weight"])
        for name, total in self.sums.items():
            if row[name] is not None:
                total[0] += 1
                total[1] += row[name]

    def summary(self) -> dict[str, Any]:
        rows = sum(self.decisions.values())
        flagged = sum(self.decisions[name] for name in FLAGGED)
        return {
            "rows": rows,
            "flagged": flagged,
            "flagged_share": flagged / rows if rows else None,
            "decisions": self.decisions,
            "tokens": self.tokens,
            "blocked_tokens": round(self.blocked_tokens),
            "blocked_tokens_share": self.blocked_tokens / self.tokens if self.tokens else None,
            "mean": {name: total / count if count else None for name, (count, total) in self.sums.items()},
        }


def refuse_missing(
    references: Mapping[str, Any], records: Sequence[Conversation] | Sequence[Tokenised], where: str
) -> None:
    """Raise RecordError naming the records that have no row among the references."""
    missing = [record.id for record in records if record.id not in references]
    if missing:
        shown = ", ".join(missing[:10]) + (", …" if len(missing) > 10 else "")
        raise RecordError(
            f"{where}: {len(missing)} of {len(records)} training records have no row in it ({shown}). "
            "Project the data set that is trained on."
        )


def _defined(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else value
