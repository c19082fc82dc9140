"""SecAlign: of two answers to data with a command in it, the one to the instruction is preferred (Chen et al. 2024).

Direct preference optimisation (arXiv 2410.05451, Sec. 4.2) on every row with data: another row's instruction is put
into them, the row's own answer is chosen and the other row's rejected. The place of the injection is drawn, as in Meta
SecAlign (arXiv 2507.02735, Sec. 3.1). The answers are the data set's, as in SecAlign; Meta SecAlign has them generated
by the model itself. The pairs lie beside the weights, in preferences/.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field, model_validator

from bulwark.attacks.injections.simulated import SimulationSettings
from bulwark.training.finetuning import FineTuningSettings

if TYPE_CHECKING:
    from bulwark.jobs.job import Job
    from bulwark.training.finetuning import Course
    from bulwark.training.objectives import Objective


class Settings(FineTuningSettings):
    """data: conversations, of which those with data are trained on. beta: of DPO, how far the model may move away from
    the one that it starts from."""

    beta: float = Field(gt=0)
    injection: SimulationSettings

    @model_validator(mode="after")
    def _whole_answers(self) -> Settings:
        if self.training.packing:
            raise ValueError(
                "training.packing puts several answers into a row, but the two of a pair are compared by row"
            )
        if self.training.loss_on != "response":
            raise ValueError(
                'training.loss_on should be "response": a pair has one prompt, and its answers are compared'
            )
        return self


def run(job: Job, settings: Settings) -> dict[str, Any]:
    """Make the pairs and optimise; the manifest records how many rows have which attack."""
    import sys
    from dataclasses import replace

    from bulwark.attacks.injections.simulated import preferences
    from bulwark.data.records import read_records, write_records
    from bulwark.steps import fine_tune

    made, counts = {}, {}
    for number, split in enumerate(("train", "validation")):
        where = job.inputs[split]
        pairs, counts[split] = preferences(
            read_records(where), settings.injection, seed=2 * job.seed + number, where=where
        )
        folder = job.folder / "preferences"
        for name, records in ((split, pairs), (f"{split}_chosen", [pair.conversation("chosen") for pair in pairs])):
            write_records(folder / f"{name}.jsonl", records)  # every process writes the same
        made[split] = str(folder / f"{split}_chosen.jsonl")
    made["pairs"] = str(job.folder / "preferences" / "train.jsonl")
    record = fine_tune(replace(job, inputs={**job.inputs, **made}), settings, sys.modules[__name__])
    return record | {"injections": counts}


def objective(course: Course, settings: Settings) -> Objective:
    """DPO on the pairs, whose chosen sides are the course's examples."""
    from bulwark.unlearning.preferences import DirectPreference

    return DirectPreference(course, "pairs", settings.beta)
