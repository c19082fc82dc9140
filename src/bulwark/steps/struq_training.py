"""StruQ's structured instruction tuning: commands in the data are not obeyed (Chen et al. 2024, arXiv 2402.06363).

It is supervised fine-tuning; what is special are the data, in which a share of the rows has another row's instruction
in its data and keeps its answer (Sec. 4.4). The step makes them itself and keeps them beside the weights, in injected/.
StruQ's front-end, which takes delimiters out of the data, is not needed: text never becomes a special token here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from bulwark.attacks.injections.simulated import SimulationSettings
from bulwark.training.finetuning import FineTuningSettings

if TYPE_CHECKING:
    from bulwark.jobs.job import Job


class Settings(FineTuningSettings):
    """data: conversations. untouched: share of the rows that are left as they are. injection: into the others."""

    untouched: float = Field(ge=0, lt=1)
    injection: SimulationSettings


def run(job: Job, settings: Settings) -> dict[str, Any]:
    """Inject and fine-tune; the manifest records how many rows have which attack."""
    import sys
    from dataclasses import replace

    from bulwark.attacks.injections.simulated import trained_against
    from bulwark.data.records import read_records, write_records
    from bulwark.steps import fine_tune

    made, counts = {}, {}
    for number, split in enumerate(("train", "validation")):
        where = job.inputs[split]
        records, counts[split] = trained_against(
            read_records(where),
            settings.injection,
            untouched=settings.untouched,
            seed=2 * job.seed + number,
            where=where,
        )
        path = job.folder / "injected" / f"{split}.jsonl"
        write_records(path, records)  # every process writes the same
        made[split] = str(path)
    record = fine_tune(replace(job, inputs={**job.inputs, **made}), settings, sys.modules[__name__])
    return record | {"injections": counts}
