"""What steering steps have in common to set: which vector, where it acts and how strongly. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

from pydantic import Field, model_validator

from bulwark.errors import ConfigurationError
from bulwark.models.anatomy import Site, check_layer
from bulwark.settings import Closed
from bulwark.training.finetuning import FineTuningSettings
from bulwark.training.settings import TrainingSettings

Fusion = Literal["norm_aligned", "average", "norm_weighted"]
Pool = Literal["response_mean", "prompt_mean", "prompt_last"]
Tokens = Literal["response", "predicting", "all"]


def check_layers(settings: Closed, blocks: int, where: Callable[[str], str]) -> None:
    """Raise ConfigurationError for the first layer that the settings of a step, benchmark or projection name and that
    a model with `blocks` blocks does not have, or that cannot be steered. where: a key stands, such as
    vectors.layers."""
    analysis = getattr(settings, "analysis", None)
    named = {
        "vectors.layers": getattr(getattr(settings, "vectors", None), "layers", ()),
        "analysis.vectors.layers": getattr(getattr(analysis, "vectors", None), "layers", ()),
        "analysis.layers": getattr(analysis, "layers", None) or (),
    }
    for key, layers in named.items():
        for layer in layers:
            check_layer(layer, blocks, where(key))
    protected = getattr(getattr(settings, "preservation", None), "layers", "all")
    if wrong := [layer for layer in protected if layer > blocks] if protected != "all" else []:
        place = where("preservation.layers")
        raise ConfigurationError(f"{place}: {wrong[0]}, but the model has {blocks} blocks.")


class VectorSettings(Closed):
    """Trait vectors of the checkpoint that a step starts from, fused into one per layer.

    traits: files of config/traits/. layers: layer keys, 1 … N-1, each the output of that block.
    fusion: "norm_aligned" (mode 0, the paper's), "average" (mode 1) or "norm_weighted" (mode 2), see
        `bulwark.steering.vectors.fusion.fuse`. weights: one per trait; equal if left out.
    pool: over which tokens a vector is the difference of means: the response, the prompt, or the prompt's last token.
        The code of persona vectors (arXiv 2507.21509) saves all three; its and this paper's is the response.
    """

    traits: tuple[str, ...] = Field(min_length=1)
    layers: tuple[int, ...] = Field(min_length=1)
    fusion: Fusion = "norm_aligned"
    weights: tuple[float, ...] | None = None
    pool: Pool = "response_mean"

    @model_validator(mode="after")
    def _consistent(self) -> VectorSettings:
        for name, values in (("traits", self.traits), ("layers", self.layers)):
            if len(set(values)) < len(values):
                raise ValueError(f"{name} names one of them twice: {', '.join(map(str, values))}")
        if any(layer < 1 for layer in self.layers):
            raise ValueError(
                "layers count from 1 (the output of the first block); 0, the embeddings, cannot be steered"
            )
        if self.weights is None:
            if self.fusion == "norm_weighted":
                raise ValueError('fusion "norm_weighted" needs weights, one per trait')
        elif self.fusion == "average":
            raise ValueError('fusion "average" weighs all traits alike; leave weights out, or take norm_weighted')
        elif len(self.weights) != len(self.traits):
            raise ValueError(f"{len(self.weights)} weights for {len(self.traits)} traits; give one each")
        elif not all(map(math.isfinite, self.weights)) or abs(sum(self.weights)) < 1e-12:
            raise ValueError("weights must be finite and must not add up to 0: they are divided by their sum")
        return self

    @property
    def layer(self) -> int:
        """The layer of what can look at one only: detectors, the analyser."""
        return self.layers[0]

    def inputs(self) -> dict[str, str]:
        return {
            f"vector_{trait}": f"vectors/{{model}}/{{parent}}/seed{{seed}}/{trait}.safetensors" for trait in self.traits
        }


class InterventionSettings(Closed):
    """h' = h + s·m·v on hidden states h, at the tokens with m = 1.

    alpha: the strength. adaptive: s = alpha·mean‖h‖/‖v‖ over each row's own tokens, in place of s = alpha.
    tokens: "response", the supervised tokens themselves; "predicting", the positions that predict them, one earlier;
        "all", every token but padding.
    site: "block", the residual stream after the block; or the output of its attention ("o_proj") or its MLP
        ("down_proj") before that is added to the stream.
    """

    alpha: float = 1.0
    adaptive: bool = False
    tokens: Tokens = "response"
    site: Site = "block"


class AnalysisSettings(Closed):
    """What is written down of a training while it runs; see `bulwark.steering.dynamics.analyser`.

    every: in optimizer steps; the last step is looked at as well. layers: the keys at which hidden states and gradients
        are looked at beside the vector's own; None takes each fifth from 10 below it to 15 above it, as the authors do.
    vectors: None takes those that the step steers with; a step without any has to name them here.
    intervention: what hidden states are compared with; None takes the step's own at its alpha, or the defaults.
    weights: whether updates of the layer's o_proj and down_proj are looked at, which needs a sharded fp32 copy of both,
        and another per window; false with adapters (LoRA), which leave these weights as they are.
    windows: parts of the training, as shares of its steps, over which updates are also taken; the analyses compare
        "late" with "early". The defaults are those of Guan et al., Table 8: steps 120-196 and 300-615 of about 620.
    """

    every: int = Field(100, ge=1)
    layers: tuple[int, ...] | None = None
    vectors: VectorSettings | None = None
    intervention: InterventionSettings | None = None
    weights: bool = True
    windows: dict[str, tuple[float, float]] = {"early": (0.19, 0.32), "late": (0.48, 0.99)}

    @model_validator(mode="after")
    def _windows_are_shares(self) -> AnalysisSettings:
        for name, (begin, end) in self.windows.items():
            if not 0 <= begin < end <= 1:
                raise ValueError(f"windows.{name}: begin and end are shares of the training, 0 ≤ begin < end ≤ 1")
        return self


def check_last_weights(training: TrainingSettings, why: str) -> None:
    """Raise ValueError if the training may end with the weights of another step than its last one; why it may not."""
    if training.keep_best:
        raise ValueError(
            f"{why}, so the training has to end with the weights of its last step: make training.keep_best false"
        )


class AnalysedTraining(FineTuningSettings):
    """A fine-tuning that can be analysed. analysis: what is written down meanwhile; None for nothing."""

    analysis: AnalysisSettings | None = None

    @model_validator(mode="after")
    def _analysable(self) -> AnalysedTraining:
        if self.analysis is not None and self.analysis.weights and self.training.lora is not None:
            raise ValueError(
                "training.lora trains adapters, so the weights that analysis.weights looks at do not change: make it "
                "false"
            )
        return self


class VectorTraining(AnalysedTraining):
    """A fine-tuning under trait vectors, which act on single examples. vectors: which, and at which layers."""

    vectors: VectorSettings

    @model_validator(mode="after")
    def _examples_by_themselves(self) -> VectorTraining:
        if self.training.loss_on != "response":
            raise ValueError(
                "training.loss_on must be response: an intervention reads the tokens of responses off the labels"
            )
        if self.training.packing:
            raise ValueError("training.packing must be false: an intervention looks at each example by itself")
        return self
