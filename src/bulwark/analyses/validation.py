"""The validation loss of a training: the mean per token, in nats, of the weights that it saved.

    validation_loss    of the checkpoint that the last step of a recipe made; lower is better
    trials             among how many the best was chosen; only of a choice, "aside.best"

Read from the manifest. Rows are the trials of a choice, each with its loss, or with why it was left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bulwark.analyses import Analysis
from bulwark.errors import RecordError
from bulwark.evaluation.metrics import Row
from bulwark.settings import Closed
from bulwark.training.finetuning import FineTuningSettings

METRICS: dict[str, bool | None] = {"validation_loss": False, "trials": None}


class Settings(Closed):
    """Nothing can be set."""


def applies(settings: Closed) -> bool:
    return isinstance(settings, FineTuningSettings) and "validation" in settings.inputs()


def analyse(manifest: Mapping[str, Any], folder: Path, settings: Settings) -> Analysis:
    """Raises RecordError if the manifest tells of no training, or of none with a validation loss."""
    report = manifest.get("training", {})
    loss = dict(report.get("validation", [])).get(report.get("weights_of_step"))
    if loss is None:
        raise RecordError(
            f"{folder / 'checkpoint.json'}: tells of no validation loss of its weights. Make it again with a step that "
            "trains on a data set with a split for validation, or take the analysis out."
        )
    values = {"validation_loss": (loss, 1)}
    rows: list[Row] = []
    if (chosen := manifest.get("chosen")) is not None:
        rows = [{"trial": name, "loss": of_trial} for name, of_trial in chosen["losses"].items()]
        rows += [{"trial": name, "loss": None, "left_out": why} for name, why in chosen["left_out"].items()]
        values["trials"] = (len(rows), 1)
    return Analysis(values, rows, {"chosen": chosen["trial"]} if chosen else {})
