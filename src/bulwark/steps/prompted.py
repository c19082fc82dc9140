"""A defense by prompting: the same model, asked in another form of its prompt template (`prompts.templates.FORMS`).

sandwich: the instruction again behind the data. delimiters: marks around the data, and a sentence that says so. Both
are baselines of StruQ (arXiv 2402.06363, its comparison of defenses at test time) and of Open-Prompt-Injection (Liu et
al. 2024, arXiv 2310.12815). Nothing is trained: the checkpoint's manifest names the parent's weights and the template
in that form, which every attack, benchmark and later step then uses.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import field_validator

from bulwark.errors import nearest
from bulwark.prompts.templates import FORMS, in_form
from bulwark.settings import Closed

if TYPE_CHECKING:
    from bulwark.jobs.job import Job

STAGE = "generate"  # no gradients


class Settings(Closed):
    """form: a name in `prompts.templates.FORMS`."""

    form: str

    @field_validator("form")
    @classmethod
    def _known(cls, form: str) -> str:
        if form not in FORMS:
            raise ValueError(f'there is no form "{form}" of a prompt template.{nearest(form, FORMS)}')
        return form


def run(job: Job, settings: Settings) -> dict[str, Any]:
    """Raises ConfigurationError if the parent's template has no such form."""
    from bulwark.models import manifests
    from bulwark.models.folders.carried import names_carried

    _, folder, template = manifests.open_manifest(job.parent)
    formed = in_form(template, settings.form)
    job.folder.mkdir(parents=True, exist_ok=True)
    return {
        "template": formed,
        "weights": Path(os.path.relpath(folder, job.folder)).as_posix(),
        "carried": names_carried(job.parent),
    }
