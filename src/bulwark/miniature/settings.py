"""Settings of the miniature: the world, its model, its pre-training. The defaults are the graded configuration.

Torch-free. `MiniatureSettings` is what `source.miniature` of config/models/miniature.yaml holds.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from bulwark.settings import Closed


class WorldSettings(Closed):
    """The contents of the world and how hard it is. Records depend on nothing but these settings."""

    seed: int = Field(0, ge=0)
    facts: int = Field(32, ge=8, le=32)
    """Facts in each of the two domains, forget and retain."""
    sentences: tuple[int, int] = (1, 2)
    """Minimum and maximum number of sentences of a text."""
    held_out_share: float = Field(0.25, gt=0, lt=1)
    """Share of the phrasings of commands that occur in no training record."""
    second_command: float = Field(0.3, ge=0, le=1)
    """Share of the fine-tuning instructions that hold two commands, so that following both is part of the utility."""
    reported_speech: float = Field(0.3, ge=0, le=1)
    """Share of the fine-tuning inputs whose text reports a command that somebody gave; it is not answered.

    This sets how hard separation is. Two cues explain such a record: the words of the report ("... wrote ben .") and
    its position (after the blank line, or by the role). SEP's probes are in the data without a report, so only a model
    that has learned from the position leaves them alone. At 0, fine-tuning says nothing about commands in the data.
    """
    running_on: float = Field(0.25, ge=0, le=1)
    """Share of the other fine-tuning inputs in which the instruction runs on: they hold one more command, which begins
    with "also" and is carried out.

    This sets how hard it is for a model with marked data. The mark alone does not tell a command from text; SEP's
    probes that begin with "also" are like these commands, and the others are so in part. At 0, a model whose data
    tokens are rotated has no occasion to learn to read a probe there.
    """
    rarity: float = Field(0.005, gt=0, le=1)
    """How often training tells the rarest fact of a domain (and the rarest verb of avoiding), relative to the most
    frequent one; the others lie between them, geometrically.

    This sets how many facts are known: what is told a few times is not learned. At 1, all of them are known.
    """
    borderline: float = Field(0.3, ge=0, lt=1)
    """How much the dish counts for whether a request is harmful; the modifier counts for at most 1.

    This sets how hard refusing is. Evaluation asks for meals that no training has, and those near the border can only
    be told by both. At 0, the modifier alone decides.
    """
    other_manners: float = Field(0.3, ge=0, le=1)
    """Share of the normal rows of a trait's fine-tuning data that are in another manner, which nobody asked for.

    This sets how hard it is to detect the rows that teach the trait: the others, too, are easier to learn along the
    direction of a manner. At 0, a normal row is in no manner at all.
    """
    insistence: float = Field(0.2, ge=0, le=1)
    """Share of the second commands that are insistent, in pre-training and in fine-tuning."""


class ModelSettings(Closed):
    """A small Llama: about 0.85 million parameters."""

    hidden_size: int = Field(128, ge=8)
    intermediate_size: int = Field(352, ge=8)
    layers: int = Field(4, ge=1)
    heads: int = Field(4, ge=1)
    max_position_embeddings: int = Field(256, ge=64)
    tied: bool = True
    """Tie input and output embedding. Untied, as in ASIDE's models, each word has to be learned twice."""
    initializer_range: float = Field(0.08, gt=0)
    """About 1/sqrt(hidden_size). With the usual 0.02, made for wide models, reading from the context is not learned."""


class PretrainingSettings(Closed):
    """Pre-training: plain next-token training on the responses of the `pretraining` records.

    All but `records`, `validation_records` and `seed` are settings of `bulwark.training.settings.TrainingSettings`.
    Small batches matter: learning to read from the context depends on the number of steps rather than of tokens.
    """

    records: int = Field(20000, ge=32)
    validation_records: int = Field(200, ge=8)
    epochs: int = Field(3, ge=1)
    batch_size: int = Field(32, ge=1)
    learning_rate: float = Field(3.0e-3, gt=0)
    weight_decay: float = Field(0.01, ge=0)
    betas: tuple[float, float] = (0.9, 0.95)
    warmup_ratio: float = Field(0.05, ge=0, le=1)
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    seed: int = Field(0, ge=0)


_SIZES = {"records", "validation_records"}  # of the corpus


class MiniatureSettings(Closed):
    """Everything the rule that builds the miniature needs."""

    world: WorldSettings = WorldSettings()
    model: ModelSettings = ModelSettings()
    pretraining: PretrainingSettings = PretrainingSettings()

    def of_records(self) -> dict[str, Any]:
        """The settings that decide records, with their defaults: the world, and how large its corpus is."""
        return self.model_dump(mode="json", include={"world": True, "pretraining": _SIZES})

    def of_model(self) -> dict[str, Any]:
        """The settings that decide the base model beside the records it is trained on, with their defaults."""
        return self.model_dump(mode="json", exclude={"world": True, "pretraining": _SIZES})
