"""Settings of the abliteration steps: closed, import-light, each default with where it comes from in config/steps/."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from bulwark.judges import JudgeSettings
from bulwark.prompts.asking import Asking
from bulwark.settings import Closed

Normalization = Literal["none", "pre", "full", "columns"]
Component = Literal["attention", "mlp"]
Method = Literal["mean", "median", "variance", "hybrid", "principal", "som"]
SEVERAL: frozenset[Method] = frozenset({"principal", "som"})  # these give several directions at once
Quantised = Literal["nf4"]
"""The attack looks for its edit on weights that are packed in 4 bits as they are read, and writes it into unpacked ones
that it reads afterwards. None: the weights as they are."""
Range = tuple[float, float]


class PromptSets(Asking):
    """Which prompts an attack uses; the report is made by the benchmark `refusal`, on prompts of its own.

    harmful, harmless: data sets of the kind `refusal`. directions, search: their splits for estimating directions and
    for measuring trials. counts: how many of each are taken from the front, {harmful_search: 32}; all by
    default.
    after: directions are estimated so many tokens into the model's own answer, 0 for the prompt's end.
    """

    harmful: str
    harmless: str
    directions: str = "train"
    search: str = "validation"
    counts: dict[
        Literal["harmful_directions", "harmless_directions", "harmful_search", "harmless_search"],
        Annotated[int, Field(ge=1)],
    ] = {}
    after: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _disjoint(self) -> PromptSets:
        if self.directions == self.search:
            raise ValueError(f'directions and search are both the split "{self.search}"; trials are measured on others')
        return self

    def inputs(self) -> dict[str, str]:
        return {
            f"{side}_{use}": f"data/{getattr(self, side)}/{getattr(self, use)}.jsonl"
            for side in ("harmful", "harmless")
            for use in ("directions", "search")
        }


class SomSettings(Closed):
    """A self-organising map of `rows` times `columns` neurons, see `bulwark.abliteration.measure.som`.

    sigma: the width of the neighbourhood, in neurons; it and the learning rate are those of the first iteration.
    """

    rows: int = Field(4, ge=1)
    columns: int = Field(4, ge=1)
    iterations: int = Field(10_000, ge=1)
    learning_rate: float = Field(0.01, gt=0, le=1)
    sigma: float = Field(0.33, gt=0)


class DirectionSettings(Closed):
    """How directions are estimated, see `bulwark.abliteration.measure.directions` and `residuals`.

    methods: the estimators that a search may choose from. orthogonalise: project out the mean harmless residual
    ("projected"). benign_rank: of the subspace that is projected out, 0 for none. dampening: the share of it.
    order, protect: "joint" and "edited" project both out of every edit; "as_published" and "measured" do as ICONOCLAST.
    most: of the directions that "principal" and "som" take out together; a search chooses how many. som: of "som".
    """

    methods: tuple[Method, ...] = Field(("mean",), min_length=1)
    most: int = Field(1, ge=1)
    som: SomSettings = SomSettings()
    winsorise: float = Field(1.0, gt=0, le=1)
    final_norm: bool = False
    variance_floor: float = Field(1e-6, gt=0)
    orthogonalise: bool = False
    benign_rank: int = Field(0, ge=0)
    benign_svd: Literal["exact", "randomised"] = "exact"
    dampening: float = Field(1.0, ge=0, le=1)
    order: Literal["joint", "as_published"] = "joint"
    protect: Literal["edited", "measured"] = "edited"

    @property
    def needs_rows(self) -> bool:
        """Whether every prompt's residuals are needed, beside their means and variances."""
        return bool(self.benign_rank) or bool({"median", *SEVERAL} & set(self.methods))


class EditSettings(Closed):
    """normalization: see `bulwark.abliteration.edit.edits`. through_norms: account for norms between a sublayer and the
    residual stream. adapter_rank: of the exported adapter where rank 1 is not exact; null writes no adapter then."""

    normalization: Normalization = "none"
    components: tuple[Component, ...] = Field(("attention", "mlp"), min_length=1)
    through_norms: bool = True
    adapter_rank: int | None = Field(3, ge=1)


class SpaceSettings(Closed):
    """What a search may choose. Layers count from 0; positions and indices are shares of L - 1.

    max_weight: per component; below 0 counts as 0, so that a range can give "not at all" a share of its own.
    min_weight: as a share of max_weight. min_weight_distance: from `shortest` layers to this share of L - 1.
    """

    scopes: tuple[Literal["global", "per layer"], ...] = Field(("global", "per layer"), min_length=1)
    direction_index: Range = (0.4, 0.9)
    max_weight: dict[Component, Range]
    max_weight_position: Range = (0.6, 1.0)
    min_weight: Range = (0.0, 1.0)
    min_weight_distance: float = Field(0.6, gt=0)
    shortest_distance: float = Field(1.0, gt=0)
    per_component: bool = False


class ObjectiveSettings(Closed):
    """What is minimised: a KL score and a behaviour score; see `bulwark.abliteration.search.objectives`.

    relative: refusals as a share of the base model's. kl_target: below it KL is no longer rewarded, 0 for never.
    regime: how behaviour is measured; "auto" takes "low_refusal_base" where the base refuses at most `low_rate`.
    """

    relative: bool = False
    kl_scale: float = Field(1.0, gt=0)
    kl_target: float = Field(0.0, ge=0)
    overrefusal: float = Field(0.0, ge=0)
    disclaimers: float = Field(0.0, ge=0)
    compliance_gap: float = Field(0.0, ge=0)
    overrefusal_relative: bool = True
    regime: Literal["auto", "refusal_reduction", "low_refusal_base"] = "refusal_reduction"
    low_rate: float = Field(0.15, ge=0, le=1)

    @property
    def reads_harmless_answers(self) -> bool:
        return self.overrefusal > 0

    @property
    def reads_whole_answers(self) -> bool:
        """Whether a verdict on refusal is not enough, so that an answer cannot be stopped at its first marker."""
        return self.disclaimers > 0 or self.compliance_gap > 0


class SearchSettings(Closed):
    """How the search runs.

    trials, startup_trials, ei_candidates: of Optuna's multivariate TPE. trials_per_batch: measured in one batch; more
    than 1 proposes them before the first of them is measured. max_new_tokens: of an answer. rule: whose markers.
    kl_gate: trials above it generate no answers and count as refusing everything. block: harmful prompts answered
    before a look whether a trial is dominated for certain, null for all at once. first: parameters to try first.
    seconds: no batch is begun after so many seconds of search.
    """

    trials: int = Field(200, ge=1)
    startup_trials: int = Field(60, ge=1)
    ei_candidates: int = Field(128, ge=1)
    trials_per_batch: int = Field(1, ge=1)
    max_new_tokens: int = Field(100, ge=1)
    rule: Literal["heretic", "iconoclast", "arditi"] = "heretic"
    kl_gate: float | None = Field(None, gt=0)
    block: int | None = Field(None, ge=1)
    confidence: float = Field(0.95, gt=0.5, lt=1)
    first: tuple[dict[str, Any], ...] = ()
    seconds: float | None = Field(None, gt=0)


class SelectionSettings(Closed):
    """Which trial of the front is exported: the fewest refusals (then overrefusals, then KL) at KL ≤ `kl_at_most`.

    Without a bound it is ICONOCLAST's rule; if no trial keeps the bound, it is the one of lowest KL.
    judge: reads whole answers of the `looked_at` best trials by that rule, and the best by it is exported instead:
    with the criterion "refusal" the one that refuses least, with "compliance" the one that complies most. A classifier
    or the miniature's oracle needs no network, which the jobs of attacks have none of on many clusters.
    answer_kl_at_most: the KL per token of whole answers to harmless prompts that such a trial may have: what the edit
    costs in capability, of which the first token tells little.
    """

    kl_at_most: float | None = Field(None, gt=0)
    judge: JudgeSettings | None = None
    criterion: Literal["refusal", "compliance"] = "refusal"
    answer_kl_at_most: float | None = Field(None, gt=0)
    looked_at: int = Field(8, ge=1)

    @property
    def looks(self) -> bool:
        """Whether trials are chosen by more than the search has measured of them."""
        return self.judge is not None or self.answer_kl_at_most is not None


class OutcomeSettings(Closed):
    """completions: how many of each kind stand side by side in comparison.json. show_harmful: with the harmful ones'
    text; else they hold verdicts, lengths and digests alone. geometry: measure and project the residuals.
    nothing_to_remove: what becomes of a model that refuses none of the attacker's prompts. "stop" ends with an error;
    "unedited" saves it as it is, with a single trial that edits nothing, and says so in its manifest."""

    completions: int = Field(5, ge=0)
    show_harmful: bool = False
    geometry: bool = True
    nothing_to_remove: Literal["stop", "unedited"] = "stop"


class AttackSettings(Closed):
    """What the searched attacks, `heretic` and `iconoclast`, can set."""

    prompts: PromptSets
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    quantised: Quantised | None = None
    directions: DirectionSettings = DirectionSettings()
    edit: EditSettings = EditSettings()
    space: SpaceSettings
    objectives: ObjectiveSettings = ObjectiveSettings()
    search: SearchSettings = SearchSettings()
    selection: SelectionSettings = SelectionSettings()
    outcome: OutcomeSettings = OutcomeSettings()

    @model_validator(mode="after")
    def _ranges_of_components(self) -> AttackSettings:
        if missing := [name for name in self.edit.components if name not in self.space.max_weight]:
            raise ValueError(f"space.max_weight has no range for {missing[0]}, which edit.components names")
        if "hybrid" in self.directions.methods and not {"mean", "variance"} <= set(self.directions.methods):
            raise ValueError("directions.methods: hybrid blends mean and variance, so name these two as well")
        if self.directions.most > 1 and not SEVERAL & set(self.directions.methods):
            raise ValueError("directions.most: only the methods principal and som give more than one direction")
        return self


class WithoutSearch(Closed):
    """Of an attack that makes its candidates itself: how these are measured. It has `max_new_tokens` and `rule`."""

    @property
    def search(self) -> SearchSettings:
        return SearchSettings(max_new_tokens=self.max_new_tokens, rule=self.rule)

    @property
    def objectives(self) -> ObjectiveSettings:
        return ObjectiveSettings()


class RefusalDirectionSettings(WithoutSearch):
    """What `refusal_direction` can set: Arditi et al. 2024 (arXiv 2406.11717), Sec. 2 and App. C.

    positions: how many of the last tokens of the prompt give candidates; null takes all that the template writes after
    the instruction. layers_below: candidates come from the layers below this share of all. kl_at_most,
    induced_at_least: what a candidate has to keep, on harmless prompts; otherwise: what to do if none does (the authors
    stop). refusal_tokens: texts whose first token begins a refusal; null takes those with which the model's own
    refusals begin and other answers do not; if there is none, refusing is read from whole answers. filtered: leave out
    harmful prompts that are not refused, and harmless ones that are. embedding: ablate the input embedding too, unless
    it gives tokens roles; where it is the output embedding as well, that becomes a matrix of its own.
    candidates_per_batch: measured in one batch.
    """

    prompts: PromptSets
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    quantised: Quantised | None = None
    positions: int | None = Field(None, ge=1)
    layers_below: float = Field(0.8, gt=0, le=1)
    kl_at_most: float = Field(0.1, gt=0)
    induced_at_least: float = 0.0
    otherwise: Literal["lowest_kl", "stop"] = "lowest_kl"
    refusal_tokens: tuple[str, ...] | None = None
    filtered: bool = True
    embedding: bool = True
    through_norms: bool = True
    candidates_per_batch: int = Field(8, ge=1)
    max_new_tokens: int = Field(100, ge=1)
    rule: Literal["heretic", "iconoclast", "arditi"] = "arditi"
    outcome: OutcomeSettings = OutcomeSettings()

    @property
    def edit(self) -> EditSettings:
        return EditSettings(through_norms=self.through_norms)

    @property
    def selection(self) -> SelectionSettings:
        return SelectionSettings(kl_at_most=self.kl_at_most)


class GradientEditSettings(WithoutSearch):
    """What `gradient_edit` can set, see `bulwark.abliteration.optimised`.

    components: what gets an edit of rank `rank`, in every block. rounds of `steps` steps: after each the edited model
    answers the attacker's prompts anew, its refusals join those that are made unlikely, and the edit is measured as a
    trial. batch_size: refusals, and as many harmless answers, of a step. learning_rate: of Adam, times the square root
    of the width. refusal_tokens: of a refusal, from token `prompts.after` on, whose likelihood is lowered. kl_at_most:
    of a token of harmless answers, in the mean; kl_weight: of what is beyond it.
    """

    prompts: PromptSets
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    quantised: Quantised | None = None
    components: tuple[Component, ...] = Field(("attention", "mlp"), min_length=1)
    rank: int = Field(4, ge=1)
    rounds: int = Field(4, ge=1)
    steps: int = Field(50, ge=1)
    batch_size: int = Field(8, ge=1)
    learning_rate: float = Field(0.1, gt=0)
    max_grad_norm: float = Field(1.0, gt=0)
    refusal_tokens: int = Field(16, ge=1)
    kl_at_most: float = Field(0.05, ge=0)
    kl_weight: float = Field(10.0, ge=0)
    max_new_tokens: int = Field(100, ge=1)
    rule: Literal["heretic", "iconoclast", "arditi"] = "heretic"
    selection: SelectionSettings = SelectionSettings()
    outcome: OutcomeSettings = OutcomeSettings()

    @property
    def edit(self) -> EditSettings:
        return EditSettings(components=self.components)
