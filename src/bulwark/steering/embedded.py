"""A vector that a checkpoint carries with it and that acts in every later fine-tuning of it.

Embedded preventative steering (Guan et al., arXiv 2609.10142, App. D): a frozen v is added to the residual stream in
training only, at the response's tokens only. Its strength depends on how many response tokens the model has been
trained on since v was put in, over all trainings: a later fine-tuning, a malicious one too, meets the strength that
the last one ended with.

In a checkpoint's folder it is the file `intervention.safetensors`, beside an ordinary model's weights. Nothing enforces
it; only bulwark applies it: `bulwark.steps.fine_tune` attaches `Carried` to every fine-tuning, unless the step's
settings say `ignore_embedded: true`. Whoever trains the folder with another library trains without it.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from bulwark import files
from bulwark.errors import BulwarkError, CheckpointError, ConfigurationError
from bulwark.models import hooks, manifests
from bulwark.steering.schedules import Strength
from bulwark.training.batches import IGNORED, Batch
from bulwark.training.finetuning import Course, FineTuningSettings
from bulwark.training.observers import Observer, batch_in_pass

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

FILE = "intervention.safetensors"
_ATTRIBUTE = "embedded_intervention"


@dataclass
class EmbeddedIntervention:
    """h' = h + s·m·v at the outputs of decoder blocks: m = 1 at supervised tokens, s = strength at `exposure`.

    at: name of a block in the model → v [hidden], fp32. strength: over response tokens since the embedding. exposure:
    response tokens it has acted on. origin: what the manifest records of the vectors, plain data.
    """

    at: dict[str, Tensor]
    strength: Strength
    exposure: int = 0
    origin: Mapping[str, Any] = field(default_factory=dict)

    def install(self, model: nn.Module) -> None:
        """Make it part of `model` (not yet wrapped), for as long as that lives.

        Raises BulwarkError if the model has one already, or has no module of a name, or is of another width.
        """
        if embedded_in(model) is not None:
            raise BulwarkError(
                "The checkpoint carries an embedded intervention already, and there can be one only. Set "
                "ignore_embedded: true in the step's settings to train without the one that is there."
            )
        width = model.config.get_text_config().hidden_size
        for name, vector in self.at.items():
            if tuple(vector.shape) != (width,):
                raise BulwarkError(f"{FILE}: the vector for {name} is {list(vector.shape)}, the model needs [{width}].")
            try:
                block = model.get_submodule(name)
            except AttributeError:
                raise BulwarkError(
                    f"{FILE}: the model has no module {name}. The file is another model's: remove it, or set "
                    "ignore_embedded: true in the step's settings."
                ) from None
            block.register_forward_hook(self._hook(vector))
        setattr(model, _ATTRIBUTE, self)

    def _hook(self, vector: Tensor):
        def added(block: nn.Module, _: tuple, output: Tensor | tuple) -> Tensor | tuple:
            if not block.training:
                return output
            batch = batch_in_pass()  # not asked for in the backward pass: checkpointing does not repeat a block's hooks
            if batch is None:
                raise BulwarkError(
                    "The checkpoint carries an embedded intervention, which has to know the tokens of the response: "
                    "in training, call the model by bulwark.training.objectives.target_logits."
                )
            hidden = hooks.hidden_of(output)
            steered = hooks.plus(hidden, vector, self.strength.at(self.exposure), batch.labels != IGNORED)
            return hooks.with_hidden(output, steered)

        return added

    def described(self) -> dict[str, Any]:
        """What the manifest records of it: `alpha` is what the next training begins with."""
        return {
            "modules": list(self.at),
            "strength": vars(self.strength),
            "exposure": self.exposure,
            "alpha": self.strength.at(self.exposure),
            **self.origin,
        }


def embedded_in(model: nn.Module) -> EmbeddedIntervention | None:
    """The intervention that is part of `model` (or of what an engine or an adapter wraps), if any."""
    return getattr(getattr(model, "module", model), _ATTRIBUTE, None)


class Carried(Observer):
    """Counts the response tokens that the intervention in `model`, if any, acts on; keeps it in the checkpoint.

    Give it to the loop last, so that other observers see the model with the strength of the step.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._step_tokens = 0

    def during(self, batch: Batch) -> AbstractContextManager[None]:
        self._step_tokens = batch.step_tokens
        return contextlib.nullcontext()

    def after_step(self, engine: DeepSpeedEngine, step: int, total: int) -> None:
        if (intervention := embedded_in(self.model)) is not None:
            intervention.exposure += self._step_tokens

    def write(self, folder: Path) -> None:
        write_embedded(embedded_in(self.model), folder)

    def snapshot(self) -> dict[str, Any]:
        return self.state_dict()

    def write_snapshot(self, folder: Path, observed: dict[str, Any]) -> None:
        intervention = embedded_in(self.model)
        write_embedded(intervention and replace(intervention, **observed), folder)

    def report(self) -> dict[str, Any]:
        intervention = embedded_in(self.model)
        return {} if intervention is None else {"embedded_intervention": intervention.described()}

    def state_dict(self) -> dict[str, Any]:
        intervention = embedded_in(self.model)
        return {} if intervention is None else {"exposure": intervention.exposure}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state:
            embedded_in(self.model).exposure = state["exposure"]


def carried(course: Course, settings: FineTuningSettings) -> Carried:
    """Make what the parent's folder carries part of the course's model, unless the settings ignore it; its observer.

    Raises ConfigurationError if the loss is not on responses only, BulwarkError for another model's.
    """
    job = course.job
    intervention = None if settings.ignore_embedded else read_embedded(manifests.weights_folder(job.parent))
    if intervention is not None:
        if settings.training.loss_on != "response":
            raise ConfigurationError(
                f"{job.parent}: the checkpoint carries an embedded intervention, which acts on supervised tokens, but "
                f'training.loss_on of the step {job.kind} is "{settings.training.loss_on}". Set it to "response", or '
                "ignore_embedded: true to train without the intervention."
            )
        intervention.install(course.model)
    return Carried(course.model)


def read_embedded(folder: Path) -> EmbeddedIntervention | None:
    """What lies in a checkpoint's folder; None if there is no such file. Raises CheckpointError if it is broken."""
    path = Path(folder) / FILE
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            record = json.loads((file.metadata() or {})["intervention"])
            at = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
        return EmbeddedIntervention(at, Strength(**record["strength"]), record["exposure"], record["origin"])
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path}: not a whole embedded intervention ({error}). Make the checkpoint again."
        ) from None


def write_embedded(intervention: EmbeddedIntervention | None, folder: Path) -> None:
    """Write the file into a checkpoint's folder; for None, remove what an earlier attempt left there."""
    path = Path(folder) / FILE
    if intervention is None:
        path.unlink(missing_ok=True)
        return
    record = {
        "strength": vars(intervention.strength),
        "exposure": intervention.exposure,
        "origin": dict(intervention.origin),
    }
    vectors = {name: vector.contiguous().cpu() for name, vector in intervention.at.items()}
    save_file(vectors, path, metadata={"intervention": json.dumps(record, ensure_ascii=False)})
    files.readable(path)


def pass_on(parent: Path, folder: Path) -> None:
    """Let a checkpoint that was made without training carry what its parent's folder carries, if anything."""
    write_embedded(read_embedded(parent), folder)
