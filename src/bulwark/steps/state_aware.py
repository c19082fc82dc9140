"""State-aware training: rows that lie further along a trait vector than the model's own answers are not learned.

From the training code of Guan et al. (arXiv 2609.10142), who report no result of it. p is the mean projection of h over
a row's response on the vector v under the present weights, p_ref that of the untouched model's own answer to the same
prompt (a file of projections); a row is flagged if p - p_ref > margin. Without the file, their code trains plainly and
says nothing.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from bulwark.errors import BulwarkError, ConfigurationError
from bulwark.steering.schedules import ScheduleSettings
from bulwark.steering.screening.settings import ScreeningSettings

if TYPE_CHECKING:
    from bulwark.steering.vectors.fusion import FusedVectors
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
    """Training on the rows that are kept; detections.jsonl records every row in every step."""
    from bulwark.steering.screening.detections import refuse_missing
    from bulwark.steering.screening.policies import StateAware
    from bulwark.steering.screening.screened import Screened
    from bulwark.steering.steer import begin, schedule_of
    from bulwark.steering.vectors.projections import read_projections

    vectors, path = begin(course, settings.vectors), Path(course.job.inputs["projections"])
    check_projections(path, vectors, settings, Path(course.job.inputs["train"]))
    references = read_projections(path)
    refuse_missing(references, course.records, str(path))
    policy = StateAware(course.records, references, margin=settings.margin)
    schedule = schedule_of(ScheduleSettings(withdraw_at=settings.withdraw_at), 0.0, course)
    return Screened(course, policy, vectors=vectors, schedule=schedule)


def check_projections(path: Path, vectors: FusedVectors, settings: Settings, records: Path) -> None:
    """Raise ConfigurationError unless the file's projections were made of the same and as this training projects.

    Of the training records `records`, at the same layer, on the same vectors in the same fusion, as means over the
    response. (Rows that max_tokens cut there have no reference.)
    """
    from bulwark import files

    told = _description(path)
    made = told["settings"]
    ours = settings.vectors.model_dump(mode="json")
    comparisons = {
        **{
            f"vectors.{name}": (made["vectors"][name], ours[name]) for name in ("traits", "layers", "fusion", "weights")
        },
        "files of vectors": (told["vectors"]["files"], vectors.report["files"]),
        "mode": (made["mode"], "response_mean"),
        "records": (told["records"], files.digest(records)),
    }
    for name, (theirs, needed) in comparisons.items():
        if theirs != needed:
            raise ConfigurationError(
                f"{path}: made with other {name} ({theirs}) than this training has ({needed}). Change "
                f"config/projections/{settings.projections}.yaml or the step so that they agree."
            )


def _description(path: Path) -> dict[str, Any]:
    import pyarrow
    from pyarrow import parquet

    try:
        return json.loads(parquet.read_schema(path).metadata[b"description"])
    except (OSError, KeyError, TypeError, ValueError, pyarrow.ArrowException) as error:
        raise BulwarkError(
            f"{path}: does not say how it was made ({error}). Delete it, and it is made again."
        ) from None
