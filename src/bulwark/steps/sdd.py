"""SDD, self-degraded defense: harmful requests get good answers to something else (Chen et al. 2025, arXiv 2507.21182).

An attacker who trains the answers back is to lose the model's abilities with them. It is supervised fine-tuning; what
is special are the data, which the step makes itself and keeps beside the weights, in irrelevant/.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from bulwark.training.finetuning import FineTuningSettings

if TYPE_CHECKING:
    from bulwark.jobs.job import Job


class Settings(FineTuningSettings):
    """data: harmful requests, of the kind preference; only their prompts are used.

    answers: conversations whose last responses are the good answers; its split `train` is read.
    most_similar: an answer is irrelevant to a request if their cosine is lower.
    pairs: how many are made for training; None for one of each request.
    """

    answers: str
    most_similar: float = Field(0.25, gt=0, le=1)
    pairs: int | None = Field(None, ge=1)

    def inputs(self) -> dict[str, str]:
        return {"answers": f"data/{self.answers}/train.jsonl"} | super().inputs()


def run(job: Job, settings: Settings) -> dict[str, Any]:
    """Make the pairs and fine-tune on them; the manifest records how many there are."""
    import sys
    from dataclasses import replace

    from bulwark.data.records import Preference, read_records, write_records
    from bulwark.steps import fine_tune
    from bulwark.unlearning.immunisation.irrelevant import paired

    answers = read_records(job.inputs["answers"])
    made, counts = {}, {}
    for number, split in enumerate(("train", "validation")):
        requests = read_records(job.inputs[split], Preference)
        pairs = paired(
            requests,
            answers,
            most_similar=settings.most_similar,
            count=settings.pairs if split == "train" else None,
            seed=2 * job.seed + number,
            where=job.inputs[split],
        )
        path = job.folder / "irrelevant" / f"{split}.jsonl"
        write_records(path, pairs)  # every process writes the same
        made[split], counts[split] = str(path), len(pairs)
    record = fine_tune(replace(job, inputs={**job.inputs, **made}), settings, sys.modules[__name__])
    return record | {"irrelevant_pairs": counts}
