"""The entities of the configuration: what a file under config/ may say.

One class per folder of `config/`. Settings of a step, a benchmark, a table … are held as plain maps here, because
their own classes live with the code that uses them; `bulwark.catalogue` joins the two and checks everything.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from bulwark.settings import Closed


class Resources(Closed):
    """What one job needs. `hours` is the expected time; the workflow asks SLURM for half as much again."""

    gpu: int = Field(0, ge=0)
    nodes: int = Field(1, ge=1)
    hours: float = Field(gt=0)
    mem_gb: float = Field(gt=0)
    threads: int = Field(1, ge=1)


class Stages(Closed):
    """What the jobs of a model need, by stage."""

    train: Resources
    generate: Resources
    pretrain: Resources | None = None


class Pin(Closed):
    """A repository of the Hub at one commit. A revision of null stands for "to be pinned by the user"."""

    hub: str
    revision: str | None


class ModelSource(Closed):
    """Where a base model comes from: the Hub, a folder of the user's, or the miniature. Exactly one."""

    hub: str | None = None
    revision: str | None = None
    tokenizer: Pin | None = None
    pad_token: str | None = None
    path: str | None = None
    miniature: dict[str, Any] | None = None
    data: str | None = None

    @model_validator(mode="after")
    def _one_origin(self) -> ModelSource:
        if (self.miniature is None) != (self.data is None):
            raise ValueError("`miniature` (the world and its model) and `data` (what it is pre-trained on) go together")
        return _exactly_one(self, "hub", "path", "miniature")


class Model(Closed):
    """config/models/: a base model, its prompt template, and what its jobs cost, per stage (train, generate)."""

    description: str = ""
    source: ModelSource
    template: str
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    resources: Stages


class DataSource(Closed):
    """Where records come from: the Hub, a web address, files of the user's, or the miniature. Exactly one."""

    hub: str | None = None
    revision: str | None = None
    files: tuple[str, ...] = ()
    url: str | None = None
    sha256: str | None = None
    path: str | dict[str, str] | None = None
    miniature: str | None = None
    world: str = "miniature"

    @model_validator(mode="after")
    def _one_origin(self) -> DataSource:
        return _exactly_one(self, "hub", "url", "path", "miniature")


class Dataset(Closed):
    """config/datasets/: a source, the schema of its records (`kind`), how to read them (`format`) and its splits.

    A split is a share of the records (below 1), a number of records, or the name of a split of the source.
    """

    description: str = ""
    licence: str = ""
    kind: str
    format: Literal["native", "alpaca", "messages", "fields"] = "native"
    fields: dict[str, str] = {}
    source: DataSource
    splits: dict[str, float | int | str]
    shuffle_seed: int | None = None
    limit: int | None = Field(None, ge=1)


class StepForModel(Closed):
    """What a step does differently on one model."""

    settings: dict[str, Any] = {}
    cost: float | None = None


class Step(Closed):
    """config/steps/: a kind of step (a module of bulwark.steps) with its settings.

    `cost` is the job's time as a multiple of one plain fine-tuning of the same model.
    """

    kind: str
    description: str = ""
    source: str = ""
    cost: float = Field(1.0, gt=0)
    settings: dict[str, Any] = {}
    models: dict[str, StepForModel] = {}


class BenchmarkForModel(Closed):
    """What a benchmark does differently on one model (another data set for the miniature, say)."""

    dataset: str | None = None
    split: str | None = None
    settings: dict[str, Any] = {}
    cost: float | None = None


class Benchmark(Closed):
    """config/benchmarks/: a module of bulwark.benchmarks with its data and settings."""

    module: str
    description: str = ""
    source: str = ""
    dataset: str
    split: str = "test"
    cost: float = Field(1.0, gt=0)
    settings: dict[str, Any] = {}
    models: dict[str, BenchmarkForModel] = {}


class Study(Closed):
    """What is run: lists only, so that an overlay replaces them. A study is the target `paper_<name>`."""

    description: str = ""
    models: tuple[str, ...]
    recipes: tuple[str, ...]
    seeds: tuple[int, ...]
    benchmarks: tuple[str, ...]
    tables: tuple[str, ...] = ()
    figures: tuple[str, ...] = ()
    claims: tuple[str, ...] = ()


def _exactly_one(source: Closed, *keys: str) -> Any:
    given = [key for key in keys if getattr(source, key) is not None]
    if len(given) != 1:
        raise ValueError(f"a source has exactly one of {', '.join(keys)}; here: {', '.join(given) or 'none'}")
    return source
