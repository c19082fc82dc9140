"""The entities of the configuration: what a file under config/ may say.

One class per folder of `config/`. Settings of a step, a benchmark, a table … are held as plain maps here, because
their own classes live with the code that uses them; `bulwark.config.catalogue` joins the two and checks everything.
"""

from __future__ import annotations

import operator
import re
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from bulwark.config import recipes
from bulwark.config.space.ranges import Range, check_keys
from bulwark.errors import nearest
from bulwark.models.placing.loading import Attention
from bulwark.prompts.asking import Asking
from bulwark.reporting.columns import attacks_on
from bulwark.settings import Closed, Text
from bulwark.steering.vectors.settings import ContrastSettings, LayerChoice, PairFilter

MIXTURE = "mixture"  # the kind of records that are those of other data sets
Rows = Annotated[int, Field(gt=0)]
Amount = Annotated[int, Field(gt=0)] | Annotated[float, Field(gt=0)] | Literal["all"]


class Resources(Closed):
    """What one job needs. hours: what one of cost 1 is expected to take; None: what `bulwark.config.costs` says."""

    gpu: int = Field(0, ge=0)
    nodes: int = Field(1, ge=1)
    hours: float | None = Field(None, gt=0)
    mem_gb: float = Field(gt=0)
    threads: int = Field(1, ge=1)


class Stages(Closed):
    """What the jobs of a model need, by stage. generate.gpu: over so many GPUs its weights are spread in such a job.

    shared_hours: trainings of one checkpoint that studies list are done by one job as long as it is expected to take no
    more hours than this, with one start of processes and one load of the model. None: each is a job of its own.
    """

    train: Resources
    generate: Resources
    pretrain: Resources | None = None
    shared_hours: float | None = Field(None, gt=0)

    @model_validator(mode="after")
    def _one_node(self) -> Stages:
        if self.generate.nodes > 1:
            raise ValueError("generate.nodes: a model that answers is spread over the GPUs of one node; set it to 1")
        return self


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


class Model(Asking):
    """config/models/: a base model, its prompt template, and what its jobs cost, per stage (train, generate).

    system_prompt, response_prefix: how it is asked where its refusals are measured or attacked (`Asking`).

    blocks: how many decoder blocks it has, by which layers are checked before the model is there.
    attention: how it is computed in jobs that answer and attack, as `training.attention` says it of trainings.
    gpu_gb: the most that weights may take of each GPU of such a job, in GB, a number per GPU; None shares them evenly.
    parameters: how many it has, from which times, downloads, disk and memory are reckoned. gated: whether its
    repository asks for an accepted licence and a token.
    """

    description: str = ""
    source: ModelSource
    template: str
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    attention: Attention = "sdpa"
    gpu_gb: tuple[Annotated[float, Field(gt=0)], ...] | None = None
    blocks: int | None = Field(None, ge=1)
    parameters: float | None = Field(None, gt=0)
    gated: bool = False
    resources: Stages

    @cached_property
    def asking(self) -> Asking:
        return Asking(system_prompt=self.system_prompt, response_prefix=self.response_prefix)

    @model_validator(mode="after")
    def _held_as_it_can_be(self) -> Model:
        if self.attention == "flash_attention_2" and self.dtype == "float32":
            raise ValueError('attention: flash_attention_2 computes in half precision only; set dtype: "bfloat16"')
        gpus = self.resources.generate.gpu
        if self.gpu_gb is not None and len(self.gpu_gb) != gpus:
            raise ValueError(
                f"gpu_gb has {len(self.gpu_gb)} numbers, one per GPU, and resources.generate.gpu is {gpus}; make them "
                "as many"
            )
        return self


class Address(Closed):
    """A file at a web address with its checksum; null stands for "to be pinned by the user"."""

    url: str
    sha256: str | None = None
    git_blob: str | None = None


class DataSource(Closed):
    """Where records come from: the Hub, a web address, files of the user's, an installed package, the miniature, or
    other data sets of the configuration. Exactly one.

    urls: {path below the folder of the download: address} of several files.

    package: name and version of a package of Python, "agentdojo==0.1.35", that an extra of ours installs.

    mixture: {data set: how much of its split}: all of it, a number of its first records, or (a number with a point)
    their number as a multiple of the first data set's.
    """

    hub: str | None = None
    revision: str | None = None
    files: tuple[str, ...] = ()
    url: str | None = None
    sha256: str | None = None
    git_blob: str | None = None
    urls: dict[str, Address] | None = Field(None, min_length=1, exclude_if=lambda urls: urls is None)
    path: str | dict[str, str] | None = None
    package: str | None = Field(None, pattern=r"^[\w.-]+==[\w.]+$", exclude_if=lambda package: package is None)
    miniature: str | None = None
    world: str = "miniature"
    mixture: dict[str, Amount] | None = Field(None, min_length=2)

    @model_validator(mode="after")
    def _one_origin(self) -> DataSource:
        if self.mixture and isinstance(next(iter(self.mixture.values())), float):
            raise ValueError(
                'the first data set of a mixture is what multiples count from: take "all" or a number of it'
            )
        for name in self.urls or ():
            if name.startswith("/") or ".." in name.split("/") or "\\" in name:
                raise ValueError(
                    f"urls: {name!r} should be a path below the folder of the download, like email/test.jsonl"
                )
        return _exactly_one(self, "hub", "url", "urls", "path", "package", "miniature", "mixture")


class Expected(Closed):
    """What a plan reckons with, where nothing counts it: rows of the source, tokens of one, size of the download."""

    rows: int | None = Field(None, ge=1)
    tokens: float | None = Field(None, gt=0)
    megabytes: float | None = Field(None, gt=0)


class Dataset(Closed):
    """config/datasets/: a source, the schema of its records (`kind`), how to read them (`format`) and its splits.

    A split is a share of the records (below 1), a number of records, or the name of a split of the source; `a+b` is one
    split of the source and then another.
    format "artefact" is persona vectors' file of a trait (`bulwark.data.contrasts`), for the kinds
    "contrast" and "traits"; "bipia" and "rules" are what these benchmarks' authors publish, "agentdojo" is what its
    package lists (`bulwark.data.foreign`).
    parts: the files below the source's folder that make it up, each with what its records' `meta` gets, `{level: 0}`,
    or, where records have no meta, their fields: `{label: harmful}`.
    where: which records are taken, by their `meta`, `{level: [0]}`, or, where records have no meta, by their fields,
    `{info.appended_task_id: [3]}`. without: which of these are left out, in the same words.
    longer_than, strip: of passages, how many characters one has more than to be taken, and markers such as "<s>" that
    are taken off its ends before.
    unusable: what a row does that makes no record: "stop", or "drop", where the source is not yours to correct; how
    many were dropped, and why the first of them, is in the log.
    size: {split: how many rows the source has for it}, before any is left out; another number is an error, null any.
    expected, gated: for the plan alone: how large it is about, and whether its page asks for a consent and a token.
    """

    description: str = ""
    licence: str = ""
    kind: str
    format: Literal[
        "native", "alpaca", "messages", "transcripts", "fields", "artefact", "bipia", "rules", "agentdojo"
    ] = "native"
    fields: dict[str, str] = {}
    source: DataSource
    splits: dict[str, float | int | str]
    size: dict[str, Rows | None] = Field({}, exclude_if=operator.not_)  # written only where it says something
    parts: dict[str, dict[str, Any]] = {}
    where: dict[str, tuple[Any, ...]] = {}
    without: dict[str, tuple[Any, ...]] = Field({}, exclude_if=lambda without: not without)
    longer_than: int = Field(0, ge=0)
    strip: tuple[Text, ...] = ()
    unusable: Literal["stop", "drop"] = "stop"
    shuffle_seed: int | None = None
    limit: int | None = Field(None, ge=1)
    expected: Expected = Expected()
    gated: bool = False

    @model_validator(mode="after")
    def _parts_and_meta(self) -> Dataset:
        if (self.kind == MIXTURE) != (self.source.mixture is not None):
            raise ValueError(f"`kind: {MIXTURE}` and `source: {{mixture: …}}` go together")
        if self.source.mixture and not all(isinstance(wanted, str) for wanted in self.splits.values()):
            raise ValueError("a split of a mixture is the name of a split that all its data sets have")
        if (self.format == "agentdojo") != (self.source.package is not None):
            raise ValueError("`format: agentdojo` and `source: {package: …}` go together")
        if (self.longer_than or self.strip) and self.kind != "passage":
            raise ValueError("longer_than and strip are for passages")
        source = self.source
        if self.parts and not (source.hub or source.url or source.urls or isinstance(source.path, str)):
            raise ValueError(
                "parts name files below a folder: the source is `hub`, `urls`, a zip's `url` or one `path`"
            )
        if self.parts and any(isinstance(wanted, str) for wanted in self.splits.values()):
            raise ValueError("with parts, a split is a share or a number of all their records")
        if unknown := [split for split in self.size if split not in self.splits]:
            raise ValueError(
                f'size is of the split "{unknown[0]}", which there is not{nearest(unknown[0], self.splits)}'
            )
        if self.size and (self.parts or self.source.mixture or self.source.miniature):
            raise ValueError(
                "size is of one source: with parts, a mixture or the miniature, splits have numbers. Write `size: {}`"
            )
        shares = sum(wanted for wanted in self.splits.values() if isinstance(wanted, float))
        if shares > 1 + 1e-9:
            raise ValueError(f"the shares of the splits add up to {shares:g}; all records together are 1.0")
        if self.format == "artefact" and self.kind not in ("contrast", "traits"):
            raise ValueError(f'the format "artefact" holds contrasts or traits\' questions, not records of {self.kind}')
        return self


class _ForModel(Closed):
    """What a step, benchmark or projection does differently on one model."""

    settings: dict[str, Any] = {}
    cost: float | None = None


class StepForModel(_ForModel):
    """What a step does differently on one model; a key of its space that is null does not vary there."""

    space: dict[str, Range | None] = {}

    @model_validator(mode="after")
    def _keys_apart(self) -> StepForModel:
        check_keys(self.space)
        return self


class MeasurementForModel(_ForModel):
    """What a benchmark or projection does differently on one model (another data set for the miniature, say)."""

    dataset: str | None = None
    split: str | None = None


class _Described(Closed):
    description: str = ""
    source: str = ""


class Step(_Described):
    """config/steps/: a kind of step (a module of bulwark.steps) with its settings.

    `cost` multiplies the time that follows from the settings, for passes that these do not show
    (bulwark.config.costs.amounts). `space` says which settings the step's trials vary, `<step>.<number>`, and how far
    (bulwark.config.space.ranges). grid: the space is made of lists, and the trials are all their combinations, the last
    key the fastest.
    """

    kind: str
    cost: float = Field(1.0, gt=0)
    settings: dict[str, Any] = {}
    space: dict[str, Range | None] = {}
    grid: bool = False
    models: dict[str, StepForModel] = {}

    @model_validator(mode="after")
    def _keys_apart(self) -> Step:
        for special in (None, *self.models):
            space = self.space_on(special)
            check_keys(space)
            if drawn := [key for key, given in space.items() if given.choices is None] if self.grid else []:
                raise ValueError(f"a grid is made of lists, and {drawn[0]} is a range; list its values, or grid: false")
        return self

    def space_on(self, model: str | None) -> dict[str, Range]:
        """The space on a model that `models` mentions, or on any other (None)."""
        own = self.models[model].space if model is not None else {}
        return {key: given for key, given in (self.space | own).items() if given is not None}


class Projection(_Described):
    """config/projections/: a data set on the trait vectors of a checkpoint (bulwark.steering.vectors.projections).

    `cost` is the job's time as a multiple of the stage `generate`.
    """

    dataset: str
    split: str = "train"
    cost: float = Field(1.0, gt=0)
    settings: dict[str, Any] = {}
    models: dict[str, MeasurementForModel] = {}


class Benchmark(Projection):
    """config/benchmarks/: a module of bulwark.benchmarks with its data and settings; `cost` as for a projection."""

    module: str
    split: str = "test"


class Trait(Closed):
    """config/traits/: a direction in the residual stream.

    It is extracted from contrasted answers to `dataset` (of the kind "contrast"), judged by `judge` (settings of
    `bulwark.judges.JudgeSettings`; null accepts every answer that is not empty); on the models under `files`, {model:
    path}, it is read from a published file. cost: of answering, as a multiple of the stage `generate`.
    """

    description: str = ""
    source: str = ""
    dataset: str | None = None
    split: str = "train"
    contrasts: ContrastSettings = ContrastSettings()
    judge: dict[str, Any] | None = None
    filter: PairFilter = PairFilter()
    choice: LayerChoice = LayerChoice()
    files: dict[str, str] = {}
    cost: float = Field(1.0, gt=0)

    @model_validator(mode="after")
    def _has_an_origin(self) -> Trait:
        if self.dataset is None and not self.files:
            raise ValueError("a trait needs a dataset of contrasts, or published files by model under files")
        return self


class Analysis(_Described):
    """config/analyses/: a module of bulwark.analyses, over what a recipe's last step wrote down while it trained."""

    module: str
    settings: dict[str, Any] = {}


class Study(Closed):
    """What is run: lists, so that an overlay replaces them. A study is the target `study_<name>`.

    paper: whose tables and figures it makes, if it is of a paper: the target `paper_<paper>` is all of its studies.
    trials: {step: how many}, for which `<step>.*` stands in its recipes, and of which `<step>.best` is one; null in an
    overlay takes a step out. attacks:
    what follows each recipe of `attacked`, or, where that is left out, of `recipes`: a grid of two lists, `base`
    standing for the attack alone.
    """

    description: str = ""
    paper: str | None = Field(None, pattern=r"^[a-z0-9_]+$")
    models: tuple[str, ...]
    recipes: tuple[str, ...]
    attacks: tuple[str, ...] = ()
    attacked: tuple[str, ...] | None = None
    trials: dict[str, Annotated[int, Field(ge=1)]] = {}
    seeds: tuple[Annotated[int, Field(ge=0, lt=10**9)], ...]
    benchmarks: tuple[str, ...]
    analyses: tuple[str, ...] = ()
    tables: tuple[str, ...] = ()
    figures: tuple[str, ...] = ()
    claims: tuple[str, ...] = ()

    @field_validator("trials", mode="before")
    @classmethod
    def _taken_out(cls, given: Any) -> Any:
        return {step: count for step, count in given.items() if count is not None} if isinstance(given, dict) else given

    @cached_property
    def every_recipe(self) -> tuple[str, ...]:
        """The recipes and then those under attack, each trial by itself.

        Raises ConfigurationError for trials of which it does not say how many.
        """
        grid = [written for attack in range(len(self.attacks)) for written in self.under(attack)]
        every = (recipe for written in (*self.recipes, *grid) for recipe in recipes.expanded(written, self.trials))
        return tuple(dict.fromkeys(every))

    def chooses(self, step: str) -> bool:
        """Whether it lists the best trial of a step and says under `trials` of how many."""
        best = f"{step}{recipes.BEST}"
        return step in self.trials and any(best in re.split("[+@]", one) for one in (*self.recipes, *self.attacks))

    def under(self, attack: int) -> tuple[str, ...]:
        """The recipes that one of `attacks`, by its place, makes of those that are attacked."""
        attacked = self.recipes if self.attacked is None else self.attacked
        return tuple(made for recipe in attacked for made in attacks_on(recipe, (self.attacks[attack],)))


def _exactly_one(source: Closed, *keys: str) -> Any:
    given = [key for key in keys if getattr(source, key) is not None]
    if len(given) != 1:
        raise ValueError(f"a source has exactly one of {', '.join(keys)}; here: {', '.join(given) or 'none'}")
    return source
