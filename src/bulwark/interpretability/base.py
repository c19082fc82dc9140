"""What the benchmarks that look inside a model have in common: a draw of SEP's records, and another checkpoint.

They are in `bulwark.benchmarks`, one file each; their records and metrics are their own. Free of torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bulwark.evaluation import benchmark
from bulwark.interpretability.samples import drawn
from bulwark.settings import Closed


class Compared(Closed):
    """Settings of a benchmark that reads a second checkpoint of the same seed. of: the recipe that it is of."""

    of: str

    def inputs(self) -> dict[str, str]:
        """That checkpoint, as `reference`."""
        reference = f"checkpoints/{{model}}/{self.of}/seed{{seed}}/checkpoint.json"
        return super().inputs() | {"reference": reference}


class OfDrawnRecords(benchmark.Benchmark):
    """A benchmark on `records` of the data set's records, drawn by the `seed` of its settings without replacement."""

    def load(self, path: Path) -> list[Any]:
        """Draw the records. Raises RecordError for a broken one, or if there are too few."""
        return drawn(super().load(path), self.settings.records, self.settings.seed, path)
