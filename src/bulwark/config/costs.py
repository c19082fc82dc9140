"""What a plan costs: GPU hours per rule, summed over the jobs that Snakemake itself would run.

The plan is Snakemake's (`snakemake -n`), so what is done already counts nothing. Times are the expected ones of
`config/models/<model>.yaml`; the limit that SLURM gets is half as much again (see workflow/rules/common.smk).
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass

LIMIT_OVER_EXPECTED = 1.5

_RULE = re.compile(r"^(?:local)?rule (\w+):$")
_RESOURCE = re.compile(r"(\w+)=([^,\s]+)")


@dataclass
class Cost:
    """Jobs of one rule: how many, their expected hours in a row, and GPU hours."""

    jobs: int = 0
    hours: float = 0.0
    gpu_hours: float = 0.0


def costs(dry_run: str) -> dict[str, Cost]:
    """Read the output of `snakemake --dry-run`."""
    table: dict[str, Cost] = defaultdict(Cost)
    rule = None
    for line in dry_run.splitlines():
        found = _RULE.match(line.strip())
        if found:
            rule = found[1]
            table[rule].jobs += 1
        elif rule and line.strip().startswith("resources:"):
            needed = dict(_RESOURCE.findall(line))
            hours = _minutes(needed.get("runtime", "0")) / 60 / LIMIT_OVER_EXPECTED
            table[rule].hours += hours
            table[rule].gpu_hours += hours * int(needed.get("gpus_per_node", 0)) * int(needed.get("nodes", 1))
            rule = None
    return dict(table)


def _minutes(value: str) -> float:
    return float(value) if re.fullmatch(r"[\d.]+", value) else 0.0
