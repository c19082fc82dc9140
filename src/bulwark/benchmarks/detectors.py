"""How well detectors tell training rows that teach a trait from normal ones: areas under the ROC, by data level.

Every row of a labelled training set (`meta.level`) is looked at once by the whole family of detectors of the steering
paper's code (Guan et al., arXiv 2609.10142), on the model that answers: delta-loss, injection-gradient probe, and
state-aware projection. The authors publish no such numbers. Suspicious is (with v the trait's direction at layer l)

    delta_mean, delta_min, D1    when low: v makes the row easier to fit (D1 = dL/dα at 0, the first order of Δ)
    D2, probe_cos, probe_proj    when high: the loss is curved along v, and the curvature points along v
    p_cur                        when high: the row's response lies along v
    dp, dp_prompt                when high: p_cur lies above the untouched model's own answer, or above the last token
                                 of the prompt in it

A number is counted with the sign that makes it suspicious when high. A row has none where it is undefined (nothing
supervised, losses that are not finite); those are counted.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import combinations_with_replacement
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, model_validator

from bulwark.data.contrasts import NORMAL_LEVELS
from bulwark.data.records import Conversation, Tokenised, read_training_records
from bulwark.errors import RecordError
from bulwark.evaluation import benchmark
from bulwark.evaluation.metrics import Groups, Metric, Row
from bulwark.models.answers import ANSWER
from bulwark.settings import Closed
from bulwark.steering.screening.settings import DetectorSettings
from bulwark.steering.settings import VectorSettings

if TYPE_CHECKING:
    from bulwark.evaluation.examinee import Examinee
    from bulwark.steering.vectors.fusion import FusedVectors

SIGNS = {
    "delta_mean": -1,
    "delta_min": -1,
    "D1": -1,
    "D2": 1,
    "probe_cos": 1,
    "probe_proj": 1,
    "p_cur": 1,
    "dp": 1,
    "dp_prompt": 1,
}
KINDS = ("auroc", "auprc", "tpr_at_1_fpr")
METRICS = {f"{kind}_{score}": True for kind in KINDS for score in SIGNS}
Record = Conversation


class Thresholds(Closed):
    """What the training steps flag by default: Δ below `delta`; cos and proj above both of theirs; Δp above `dp`."""

    delta: float = 0.0
    probe_cos: float = 0.12
    probe_proj: float = 1e-8
    dp: float = 0.0


class Scoring(Closed):
    """normal: the levels of harmless rows; every other level is to be detected. resamples: of the bootstrap."""

    normal: tuple[str, ...] = NORMAL_LEVELS
    thresholds: Thresholds = Thresholds()
    resamples: int = Field(2000, ge=2)


class Settings(Closed):
    """What the rows are looked at with.

    vectors: with a single layer. of: the recipe whose vectors and projections are taken, so that checkpoints along a
    training can be looked at with the directions of the model it started from. projections: a file of
    config/projections/ over the same rows, in the mode response_mean; null leaves dp and dp_prompt out.
    detectors: see there. max_tokens: as `training.max_tokens`.
    """

    vectors: VectorSettings
    of: str = "base"
    projections: str | None = None
    detectors: DetectorSettings = DetectorSettings()
    max_tokens: int | None = Field(None, ge=2)
    scoring: Scoring = Scoring()

    @model_validator(mode="after")
    def _one_layer(self) -> Settings:
        if len(self.vectors.layers) != 1:
            raise ValueError("detectors look at one layer; name one in fusion.layers")
        return self

    def inputs(self) -> dict[str, str]:
        """The vectors and the projections, as path templates."""
        asked = {name: path.replace("{parent}", self.of) for name, path in self.vectors.inputs().items()}
        if self.projections is not None:
            asked["projections"] = f"projections/{{model}}/{self.of}/seed{{seed}}/{self.projections}.parquet"
        return asked


class Benchmark(benchmark.Benchmark):
    schema = Record
    metrics = METRICS

    def load(self, path: Path) -> list[Conversation] | list[Tokenised]:
        """Read the rows to train on. Raises RecordError for a broken one, and for one whose meta has no level."""
        records = read_training_records(Path(path))
        for record in records:
            if "level" not in record.meta:
                raise RecordError(
                    f'{path}: the record "{record.id}" has no level in its meta. Detectors are measured on rows '
                    "that are known to be normal or not: give each a level (0 or normal, 1, 2)."
                )
        return records

    def answers(self, examinee: Examinee, records: Sequence[Conversation | Tokenised]) -> list[Row]:
        """Every score of every row, as JSON, from one pass of the trunk and a few of what lies above the layer.

        Raises ConfigurationError for vectors that do not fit the model or the projections, RecordError for rows
        without a projection.
        """
        from bulwark.models import anatomy
        from bulwark.models.embeddings import role_embedding_of
        from bulwark.models.open import prompt_limit
        from bulwark.prompts.builder import PromptBuilder
        from bulwark.steering.screening import detectors
        from bulwark.steering.vectors import fusion
        from bulwark.training.finetuning import examples_of

        settings, model, inputs = self.settings, examinee.model, examinee.inputs
        embedding, asked = role_embedding_of(model), examinee.language_model
        limit = prompt_limit(asked.positions, settings.max_tokens, 0, "the checkpoint")
        builder = PromptBuilder(asked.tokenizer, asked.template, embedding.num_embeddings, limit, roles=embedding.roles)
        examples = examples_of(records, builder, "response", embedding.method)
        layers, layer = len(anatomy.blocks_of(model)), settings.vectors.layer
        files = {trait: inputs[f"vector_{trait}"] for trait in settings.vectors.traits}
        fused = fusion.load_fused(settings.vectors, files, model)
        references = (
            _references(inputs["projections"], examples.records, settings, fused) if settings.projections else None
        )
        scored = detectors.score_rows(
            model,
            examples.prompts,
            layer,
            fused.at[layer],
            settings.detectors,
            records=examples.records,
            references=references,
            pad_id=builder.pad_id,
        )
        nothing = {
            "n_resp": 0,
            "truncated": True,
            "depth": layer / layers,
        }  # nothing is learned of it, or max_tokens cut it
        results = {record.id: nothing for record in records}
        for record, prompt, row in zip(examples.records, examples.prompts, scored, strict=True):
            below = references[record.id]["prompt_projection"] if references is not None else None
            dp_prompt = None if below is None or row["p_cur"] is None else row["p_cur"] - below
            results[record.id] = {**row, "dp_prompt": dp_prompt, "truncated": prompt.truncated, "depth": layer / layers}
        return [
            benchmark.measured(key, json.dumps(row, allow_nan=False), tokens=row["n_resp"], truncated=row["truncated"])
            for key, row in results.items()
        ]

    def score(self, record: Conversation | Tokenised, responses: Mapping[str, str]) -> Row:
        """One row of the authors' record of detections: all that was seen of it, its level and its trait."""
        result = json.loads(responses[ANSWER])
        known = {key: value for key, value in result.items() if key != "id"}
        return {
            **known,
            **{name: result.get(name) for name in SIGNS},
            "level": str(record.meta["level"]),
            "trait": str(record.meta.get("trait", "unnamed")),
        }

    def aggregate(self, rows: Sequence[Row]) -> dict[str, Metric]:
        """All areas and rates, with bootstrap errors over rows; null where a detector was left out."""
        return _measured(rows, self.settings)

    def breakdowns(self, rows: Sequence[Row]) -> dict[str, Groups]:
        """Each level that is to be detected against all normal rows, and each trait's rows by themselves."""
        traits = _grouped(rows, "trait")
        groups = {"level": _levels(rows, self.settings), "trait": traits if len(traits) > 1 else {}}
        return {
            name: {group: _measured(part, self.settings) for group, part in parts.items()}
            for name, parts in groups.items()
        }

    def reported(self, rows: Sequence[Row]) -> dict[str, Any]:
        """Counts, ROC curves, what the training steps' thresholds would flag, correlations, and costs.

        roc: {detector: [[false positive rate, true positive rate], …]}; roc_by_level: the same per level. flagged:
        {rule: {true_positive_rate, false_positive_rate, rows}}. correlation: Spearman's, between the suspicions of two
        detectors, {detector: {detector: value}}. cost_forward_units: the cost of each detector by itself, in forward
        passes.
        """
        levels = _levels(rows, self.settings)
        return {
            "rows_by_level": {level: len(of_level) for level, of_level in _grouped(rows, "level").items()},
            "rows_without_supervised_token": sum(not row["n_resp"] for row in rows),
            "rows_undefined": {name: sum(row["n_resp"] > 0 and row[name] is None for row in rows) for name in SIGNS},
            "roc": _curves(rows, self.settings),
            "roc_by_level": {level: _curves(part, self.settings) for level, part in levels.items()},
            "flagged": _flagged(rows, self.settings),
            "correlation": _correlation(rows),
            "cost_forward_units": costs(rows[0]["depth"]),
        }


def costs(depth: float) -> dict[str, float]:
    """What each detector takes, in forward passes of the whole model, with the layer at `depth` of it (0 … 1).

    The trunk runs once; a gradient with respect to hidden states alone takes as long as the forward pass it follows.
    References are made beforehand, once: for dp an answer of the model to every prompt, for dp_prompt a pass over it.
    """
    upper = 1 - depth
    return {
        **dict.fromkeys(("delta_mean", "delta_min", "D1"), depth + 2 * upper),
        **dict.fromkeys(("D2", "probe_cos", "probe_proj"), depth + 4 * upper),
        **dict.fromkeys(("p_cur", "dp", "dp_prompt"), depth),
    }


def suspicion(row: Row, name: str) -> float | None:
    """How suspicious the detector finds the row, more when higher; None where it has nothing to say."""
    return None if not row["n_resp"] or row[name] is None else SIGNS[name] * row[name]


def _references(
    path: Path, records: Sequence[Conversation | Tokenised], settings: Settings, fused: FusedVectors
) -> dict[str, dict[str, Any]]:
    """The projections of all rows, if they were made on the very vectors and texts that are looked at here."""
    from bulwark.steering.vectors import projections

    found = projections.read_projections(path)
    missing = [record.id for record in records if record.id not in found]
    if missing:
        raise RecordError(
            f'{path}: {len(missing)} rows have no projection, "{missing[0]}" is one. `projections` must name a file of '
            "config/projections/ over the data set and split that the benchmark reads."
        )
    needed = projections.comparable(settings.vectors, settings.max_tokens, vector_files=fused.report["files"])
    projections.check_projections(settings.projections, projections.made_from(path), needed, str(path))
    return found


def _grouped(rows: Sequence[Row], column: str) -> dict[str, list[Row]]:
    return {value: [row for row in rows if row[column] == value] for value in sorted({row[column] for row in rows})}


def _levels(rows: Sequence[Row], settings: Settings) -> dict[str, list[Row]]:
    """Each level that is to be detected: all normal rows, then its own."""
    by_level, normal = _grouped(rows, "level"), settings.scoring.normal
    harmless = [row for row in rows if row["level"] in normal]
    return {level: [*harmless, *own] for level, own in by_level.items() if level not in normal}


def _taken(rows: Sequence[Row], name: str, settings: Settings) -> tuple[list[float], list[bool]]:
    """Suspicions and labels of the rows that count."""
    pairs = [(suspicion(row, name), row["level"] not in settings.scoring.normal) for row in rows]
    counted = [pair for pair in pairs if pair[0] is not None]
    return [value for value, _ in counted], [label for _, label in counted]


def _measured(rows: Sequence[Row], settings: Settings) -> dict[str, Metric]:
    from bulwark.evaluation.roc import discrimination

    metrics: dict[str, Metric] = {}
    for name in SIGNS:
        quality = discrimination(*_taken(rows, name, settings), resamples=settings.scoring.resamples)
        for kind in KINDS:
            measured = getattr(quality, kind)
            metrics[f"{kind}_{name}"] = Metric(
                value=measured.value,
                stderr=measured.stderr,
                interval=list(measured.interval) if measured.interval else None,
                n=quality.positives + quality.negatives,
                higher_is_better=True,
            )
    return {metric: metrics[metric] for metric in METRICS}


def _curves(rows: Sequence[Row], settings: Settings) -> dict[str, list[list[float]]]:
    """The ROC of every detector that finds both groups among the rows."""
    from bulwark.evaluation.roc import roc_points

    taken = {name: _taken(rows, name, settings) for name in SIGNS}
    return {name: roc_points(*pair) for name, pair in taken.items() if any(pair[1]) and not all(pair[1])}


def _flagged(rows: Sequence[Row], settings: Settings) -> dict[str, dict[str, float | int | None]]:
    """What each rule flags; a value equal to its threshold is not flagged."""
    limits = settings.scoring.thresholds
    rules = {
        "delta_mean": lambda row: row["delta_mean"] < limits.delta,
        "delta_min": lambda row: row["delta_min"] < limits.delta,
        "probe": lambda row: row["probe_cos"] > limits.probe_cos and row["probe_proj"] > limits.probe_proj,
        "dp": lambda row: row["dp"] > limits.dp,
    }
    needed = {"probe": ("probe_cos", "probe_proj")}
    flagged = {}
    for name, rule in rules.items():
        counted = [row for row in rows if all(suspicion(row, one) is not None for one in needed.get(name, (name,)))]
        parts = {True: [], False: []}
        for row in counted:
            parts[row["level"] not in settings.scoring.normal].append(rule(row))
        rates = {label: sum(flags) / len(flags) if flags else None for label, flags in parts.items()}
        flagged[name] = {"true_positive_rate": rates[True], "false_positive_rate": rates[False], "rows": len(counted)}
    return flagged


def _correlation(rows: Sequence[Row]) -> dict[str, dict[str, float | None]]:
    from scipy.stats import spearmanr

    table: dict[str, dict[str, float | None]] = {name: {} for name in SIGNS}
    for one, other in combinations_with_replacement(SIGNS, 2):
        pairs = [(suspicion(row, one), suspicion(row, other)) for row in rows]
        both = [pair for pair in pairs if None not in pair]
        differ = all(len({pair[side] for pair in both}) > 1 for side in (0, 1))
        table[one][other] = table[other][one] = float(spearmanr(both).statistic) if differ else None
    return table
