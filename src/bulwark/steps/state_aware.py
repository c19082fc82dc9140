"""State-aware training: rows that lie further along a trait vector than the model's own answers are not learned.

From the training code of Guan et al. (arXiv 2609.10142), who report no result of it. p is the mean projection of h over
a row's response on the vector v under the present weights, p_ref that of the untouched model's own answer to the same
prompt (a file of projections, without which their code trains plainly); a row is flagged if p - p_ref > margin.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from bulwark.steering.schedules import ScheduleSettings
from bulwark.steering.screening.settings import ScreeningSettings

if TYPE_CHECKING:
    from bulwark.training.finetuning import Course
    from bulwark.training.objectives import Objective


class Settings(ScreeningSettings):
    """projections: a file of config/projections/, of the very data set, layer, traits and fusion of this training.

    margin: flagged is Δp > margin, in the units of h·v. withdraw_at: how many optimizer steps are screened, all if
    null; later ones are plain training.
    """

    projections: str
    margin: float = 0.0
    withdraw_at: int | None = Field(None, ge=1)

    def inputs(self) -> dict[str, str]:
        path = f"projections/{{model}}/{{parent}}/seed{{seed}}/{self.projections}.parquet"
        return super().inputs() | {"projections": path}


def objective(course: Course, settings: Settings) -> Objective:
    """Training on the rows that are kept; detections.jsonl records every row in every step.

    Raises RecordError for data that bring projections of their own, which nothing says the origin of.
    """
    from bulwark import files
    from bulwark.errors import RecordError
    from bulwark.steering.screening.detections import refuse_missing
    from bulwark.steering.screening.policies import StateAware
    from bulwark.steering.screening.screened import Screened
    from bulwark.steering.steer import begin, schedule_of
    from bulwark.steering.vectors import projections

    if own := next((one.id for one in course.records if "ref_projection" in one.meta), None):
        raise RecordError(
            f'{course.job.inputs["train"]}: the record "{own}" has a column ref_projection, of which nothing says by '
            "which checkpoint, vectors and tokens it was made; projections are made by config/projections/. Take the "
            "column out of the data."
        )
    vectors, path = begin(course, settings.vectors), Path(course.job.inputs["projections"])
    needed = projections.comparable(
        settings.vectors,
        settings.training.max_tokens,
        records=files.digest(Path(course.job.inputs["train"])),
        vector_files=vectors.report["files"],
    )
    projections.check_projections(settings.projections, projections.made_from(path), needed, str(path))
    references = projections.read_projections(path)
    refuse_missing(references, course.records, str(path))
    policy = StateAware(course.records, references, margin=settings.margin)
    schedule = schedule_of(ScheduleSettings(withdraw_at=settings.withdraw_at), 0.0, course)
    return Screened(course, policy, vectors=vectors, schedule=schedule)
