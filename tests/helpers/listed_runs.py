"""Every kind of step and every module of benchmark on a listed model, in this process: what the jobs call, cut down.

The plan says what a job reads and how it is set (`bulwark.config.plan`), as in the workflow; what it reads is made when
it is asked for. Settings are those of the listed model, with fewer steps, records and tokens, and layers at the same
share of a smaller depth. Data are the miniature's, in the place of data sets of the same kind.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from listed_models import LAYERS
from listed_records import RECORDS, TEXTS, catalogue, records_of
from transformers import AutoModelForCausalLM

from bulwark import benchmarks, seals, steps
from bulwark.config import paths, plan, plan_vectors
from bulwark.data.records import Turn, write_records
from bulwark.errors import ConfigurationError
from bulwark.evaluation import answer, score
from bulwark.evaluation.metrics import records_beside
from bulwark.jobs.job import Job
from bulwark.models import checkpoints, manifests, origin
from bulwark.models.anatomy import positions_of
from bulwark.models.generation import stop_ids_of
from bulwark.models.open import LanguageModel, open_model, prompt_limit
from bulwark.prompts.builder import IGNORED, PromptBuilder
from bulwark.settings import validated
from bulwark.steering.vectors import extraction, pairs, projections
from bulwark.steering.vectors.settings import ContrastSettings, PairFilter

SURE = 0.4  # of every token of an answer, in nats: no other is half as likely, and rounding to bfloat16 leaves that
REFUSAL, ANSWER = "i cannot , sorry", "here it is ."
SEED = "0"

MARKED = ("i cannot", "i can't")
CRITERIA = (
    *("refusal", "safety", "answer", "compliance", "specificity", "convincingness", "preference", "coherence"),
    *("quality", "evil", "sycophantic", "hallucinating"),
)
JUDGE = {"kind": "marker", "marker": {"markers": {name: MARKED for name in CRITERIA}}}
# key: the most that it may be; a number of something that takes time
MOST = {
    "max_new_tokens": 5, "records": RECORDS, "count": 2, "trials": 2, "startup_trials": 1, "ei_candidates": 4,
    "rounds": 1, "search_width": 4, "top_k": 4, "queries": 3, "most": 2, "samples": 1, "resamples": 20, "rollouts": 1,
    "pairs": 1, "calibration_tokens": 8, "every": 1, "boundary": 1, "onset": 1, "withdraw_at": 1, "switch_at": 1,
    "subset": 2, "completions": 1, "cases_per_step": 2, "pool": 4, "sample": RECORDS, "epochs": 1, "iterations": 4,
    "together": 4, "target_tokens": 4, "examples": 2, "refusal_tokens": 2, "trials_per_batch": 2,
}  # fmt: skip
TRAINING = {
    "epochs": None, "max_steps": 2, "batch_size": 2, "micro_batch_size": 2, "learning_rate": 1e-2, "warmup_ratio": 0.0,
    "warmup_steps": None, "min_learning_rate": 0.0, "zero_stage": 0, "offload": False, "attention": "sdpa",
    "save_every": None, "save_minutes": None, "snapshots": [], "evaluate_every": None, "keep_best": False,
}  # fmt: skip


def studied(model: str, section: str) -> list[str]:
    """The steps or benchmarks that a study runs on a model, or whose files have settings of their own for it."""
    entities = getattr(catalogue(), section)
    named: list[str] = []
    for study in catalogue().studies.values():
        if model in study.models:
            if section == "benchmarks":
                named += study.benchmarks
            else:
                named += [name for recipe in study.every_recipe if recipe != "base" for name in recipe.split("+")]
    plain = [
        name.partition("@")[0].removesuffix(".best").partition(".")[0] if name not in entities else name
        for name in named
    ]
    return list(
        dict.fromkeys([*(n for n in plain if n in entities), *(n for n, e in entities.items() if model in e.models)])
    )


def kinds(section: str) -> list[str]:
    """Every module of steps or of benchmarks."""
    package = steps if section == "steps" else benchmarks
    folder = Path(package.__file__).parent
    return sorted(path.stem for path in folder.glob("*.py") if not path.stem.startswith("_"))


def representative(model: str, section: str, kind: str) -> str:
    """The entity of a kind that is tried on a model: one that a study runs there, or else the usual one."""
    known = getattr(catalogue(), section)
    every = [name for name in known if getattr(catalogue(), section[:-1])(None, name).module == kind]
    own = [name for name in studied(model, section) if name in every]
    return (own or sorted(every, key=lambda name: (name != kind, name)))[0]


# --- settings ---


class Cut:
    """Settings of a listed model for a small one of few blocks. deeper: they may be for a model of more blocks."""

    def __init__(self, blocks: int, deeper: bool = False) -> None:
        self.blocks, self.deeper = blocks, deeper

    def layer(self, layer: int, last: int = LAYERS - 1) -> int:
        """The layer at the same share of the depth that can be steered."""
        assert self.deeper or layer <= self.blocks, f"layer {layer} of {self.blocks}"
        return min(max(1, round(layer * LAYERS / self.blocks)), last)

    def of(self, value: Any, key: str = "") -> Any:
        """The settings, or what stands in them under `key`."""
        if key == "training":
            return self.training(value)
        if key == "counts":
            return {name: min(count, RECORDS) for name, count in value.items()}
        if key == "at" and isinstance(value, (list, tuple)):
            return [1]
        if key == "judge" and value is not None:
            return JUDGE | {"scale": value["scale"]}
        if isinstance(value, dict):
            made = {name: self.of(item, name) for name, item in value.items()}
            return made | {"count": TEXTS} if "texts" in value else made
        if key in ("layers", "blocks", "candidates") and isinstance(value, (list, tuple)):
            return list(dict.fromkeys(map(self.layer, value)))
        if key in ("layer", "first_layer", "last_blocks") and value is not None:
            return self.layer(value)
        if isinstance(value, (list, tuple)):
            return [self.of(item) for item in value]
        if key == "steps" and isinstance(value, int):
            return 2
        if key in MOST and isinstance(value, (int, float)) and not isinstance(value, bool):
            return min(value, MOST[key])
        return value

    def training(self, given: dict[str, Any]) -> dict[str, Any]:
        """Two optimizer steps in this process."""
        made = given | TRAINING
        if made["lora"]:
            lora = made["lora"]
            made["lora"] = lora | {"rank": 2, "blocks": lora["blocks"] and self.layer(lora["blocks"], LAYERS)}
        return made


# --- a model ---


def opened_once() -> Callable[..., LanguageModel]:
    """`open_model` that opens a checkpoint once; each caller gets a builder with its own longest prompt."""
    known: dict[tuple[Any, ...], LanguageModel] = {}

    def opened(checkpoint: Any, dtype: str, *, max_tokens: int | None = None, new_tokens: int = 0, **more: Any) -> Any:
        key = (str(manifests.manifest_path(checkpoint)), dtype, *sorted(more.items(), key=lambda item: item[0]))
        if key not in known:
            known[key] = open_model(checkpoint, dtype, **more)
        found = known[key]
        builder = copy.copy(found.builder)
        builder.max_tokens = prompt_limit(positions_of(found.model), max_tokens, new_tokens, "the model")
        return replace(found, builder=builder)

    return opened


def tokenizers_once() -> Callable[[Any], Any]:
    """`load_tokenizer` that reads equal files once; the folders of a model's checkpoints hold the same."""
    known: dict[bytes, Any] = {}
    read = checkpoints.load_tokenizer

    def loaded(folder: Any) -> Any:
        manifest = manifests.manifest_path(folder)
        place = manifests.weights_folder(manifest) if manifest.is_file() else Path(folder)
        key = b"".join((place / name).read_bytes() for name in ("tokenizer.json", "tokenizer_config.json"))
        if key not in known:
            known[key] = read(folder)
        return known[key]

    return loaded


def asked_by(system: str | None, text: str) -> list[Turn]:
    """A request as attacks write it."""
    return [*([Turn(role="system", text=system)] if system else []), Turn(role="instruction", text=text)]


def teach_to_refuse(folder: Path, template: str, system: str | None) -> None:
    """Train the model in `folder` until it refuses the harmful prompts of attacks, and answers the harmless ones.

    It stops when every token of these answers is the likeliest by far.
    """
    tokenizer = checkpoints.load_tokenizer(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    rows = model.get_input_embeddings().num_embeddings
    builder = PromptBuilder(tokenizer, template, rows, None, stop_ids_of(model, tokenizer))
    examples = []
    for name, said in (("harmful_behaviors", REFUSAL), ("harmless_alpaca", ANSWER)):
        for record in (*records_of(name, "train"), *records_of(name, "validation")):
            turns = asked_by(system, record.prompt)
            learned = builder.example([*turns, Turn(role="response", text=said)]).labels
            # straight after the prompt, as answers are generated: a template may write a space between the two
            examples.append((builder.prompt(turns).ids, [label for label in learned if label != IGNORED]))
    longest = max(len(asked) + len(answer) for asked, answer in examples)
    answered = max(len(answer) for _, answer in examples)
    ids, labels, mask = (
        torch.tensor([[*[fill] * (longest - len(row)), *row] for row in given])
        for given, fill in (
            ([[number % rows for number in (*asked, *answer)] for asked, answer in examples], 0),
            ([answer for _, answer in examples], IGNORED),
            ([[1] * (len(asked) + len(answer)) for asked, answer in examples], 0),
        )
    )
    targets = labels[:, -answered:]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    for _ in range(300):
        read = model(input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=answered + 1)
        logits = read.logits[:, :-1].transpose(1, 2)
        losses = torch.nn.functional.cross_entropy(logits, targets, reduction="none", ignore_index=IGNORED)
        if losses.max() < SURE:
            break
        optimizer.zero_grad()
        losses.sum(dim=1).mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    assert losses.max() < SURE, f"{folder}: it does not learn to refuse ({losses.max():.2f})."
    model.to(torch.bfloat16).save_pretrained(folder)


class Listed:
    """A listed model and what is made of it below the working folder."""

    def __init__(self, model: str) -> None:
        self.model, self.plan = model, catalogue()
        self.entity = self.plan.model(model)
        self.blocks = plan.blocks_of(self.plan, model)  # as listed, before there is a smaller model
        self.cut = Cut(self.blocks)
        self.makers: dict[str, Callable[[list[str]], None]] = {
            "data": self._data, "checkpoints": self._checkpoint, "vectors": self._vectors,
            "projections": self._projections, "models": self._base,
        }  # fmt: skip

    def need(self, path: str | Path) -> Path:
        """A file below results/, made if it is not there."""
        if not Path(path).exists():
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            folder, *parts = Path(path).relative_to("results").parts
            self.makers[folder](parts)
        return Path(path)

    def apply(self, kind: str) -> tuple[Path, Path]:
        """The checkpoint that a kind of step makes, and its parent."""
        name = representative(self.model, "steps", kind)
        # between the base model and itself there is nothing to interpolate
        parent = representative(self.model, "steps", "vanilla") if kind == "interpolate" else "base"
        recipe = name if parent == "base" else f"{parent}+{name}"
        return self.need(paths.checkpoint(self.model, recipe, SEED)), Path(paths.checkpoint(self.model, parent, SEED))

    def asked(self, text: str) -> list[Turn]:
        """The turns in which attacks ask the model."""
        return asked_by(self.entity.asking.system_prompt, text)

    def records(self, dataset: str, split: str) -> tuple[Any, ...]:
        """The records that stand for a data set's."""
        return records_of(dataset, split)

    def _data(self, parts: list[str]) -> None:
        write_records(Path("results/data", *parts), records_of(parts[0], parts[1].removesuffix(".jsonl")))

    def _base(self, parts: list[str]) -> None:
        manifest, source = Path("results/models", *parts), self.entity.source.model_dump(mode="json")
        origin.fetch_model(source, self.entity.template, manifest)
        teach_to_refuse(manifest.parent, self.entity.template, self.entity.asking.system_prompt)
        told = {"template": self.entity.template, "source": source, "weights": ".", "provenance": {}}
        manifests.write_manifest(manifest, told)

    def _checkpoint(self, parts: list[str]) -> None:
        model, recipe, _, _ = parts
        output = Path(paths.checkpoint(model, recipe, SEED))
        if recipe == "base":
            manifests.start_recipe(self.need(f"results/models/{model}/model.json"), output, self.identity(recipe))
            return
        work, asked, settings = self.step(recipe)
        inputs = {name: str(self.need(path)) for name, path in asked.items()}
        steps.perform(
            Job(
                kind=work.module,
                settings=settings,
                parent=inputs.pop("parent"),
                output=str(output),
                inputs=inputs,
                identity=self.identity(recipe),
                log="",
                code=work.code,
                loading=plan.loading(self.plan, model) | {"gpus": 1, "gpu_gb": None},
            )
        )

    def step(self, recipe: str) -> tuple[plan.Work, dict[str, str], dict[str, Any]]:
        """A recipe's last step, what it reads, and its settings for a small model.

        On a model that no study runs it on, its layers may be those of a deeper one.
        """
        name, parent = recipe.rpartition("+")[2], recipe.rpartition("+")[0] or "base"
        try:
            work = plan.step(self.plan, self.model, recipe)
            return work, plan.step_inputs(self.plan, self.model, recipe, SEED), self.cut.of(work.settings)
        except ConfigurationError:
            if name in studied(self.model, "steps"):
                raise
        resolved = self.plan.step(self.model, name)
        names = {
            "model": self.model,
            "parent": parent,
            "prefix": "" if parent == "base" else f"{parent}+",
            "seed": SEED,
        }
        read = {"parent": paths.checkpoint(self.model, parent, SEED), **plan.filled(resolved.inputs, **names)}
        work = plan.work(self.plan, self.model, "", resolved=resolved)
        return work, read, Cut(self.blocks, deeper=True).of(work.settings)

    def identity(self, recipe: str) -> dict[str, Any]:
        return {"model": self.model, "recipe": recipe, "seed": int(SEED)}

    def measure(self, recipe: str, name: str) -> tuple[dict[str, Any], list[Any], list[dict[str, Any]]]:
        """The scores of a recipe's checkpoint on a benchmark, the records that it takes, and the rows of scores."""
        made = plan.answers(self.plan, self.model, recipe, name)
        read = {
            key: self.need(path) for key, path in plan.answer_inputs(self.plan, self.model, recipe, SEED, name).items()
        }
        answers = Path(paths.answers(self.model, recipe, SEED, name))
        made_by = answers.with_suffix(".provenance.json")
        scores = Path(paths.scores(self.model, recipe, SEED, name))
        for path in (answers, scores):
            path.parent.mkdir(parents=True, exist_ok=True)
        checkpoint, records = read.pop("checkpoint"), read.pop("records")
        settings = self.cut.of(made.settings)
        answer.answer(
            checkpoint, records, benchmarks.benchmark_of(made.module, settings), seed=int(SEED),
            dtype=plan.dtype(self.plan, self.model), threads=1, answers=answers, provenance=made_by,
            inputs=read, code=made.code,
        )  # fmt: skip
        scored = plan.scores(self.plan, self.model, recipe, name)
        known = plan.scoring_inputs(self.plan, self.model, recipe, SEED, name)
        benchmark = benchmarks.benchmark_of(scored.module, self.cut.of(scored.settings))
        told = score.score_file(
            benchmark, answers=answers, records=records,
            identity=self.identity(recipe) | {"benchmark": name}, provenance=made_by, scores=scores,
            checkpoint=checkpoint, inputs={key: self.need(path) for key, path in known.items()},
        )  # fmt: skip
        rows = records_beside(scores).read_text(encoding="utf-8").splitlines()
        return told, benchmark.load(records), [json.loads(row) for row in rows]

    def _vectors(self, parts: list[str]) -> None:
        """Of all pairs, since a random model shows no trait."""
        model, recipe, _, file = parts
        trait, output = file.removesuffix(".safetensors"), Path("results/vectors", *parts)
        checkpoint = self.need(paths.checkpoint(model, recipe, SEED))
        records = self.need(plan_vectors.contrast_records(self.plan, model, recipe, trait))
        common = {"dtype": plan.dtype(self.plan, model), "threads": 1}
        made = plan_vectors.contrasts(self.plan, model, recipe, trait)
        answered, judged = output.with_suffix(".contrasts.jsonl"), output.with_suffix(".judged.jsonl")
        settings = validated(ContrastSettings, self.cut.of(made.settings), trait)
        pairs.generate_pairs(checkpoint, records, settings, seed=0, output=answered, code=made.code, **common)
        pairs.judge_pairs(answered, None, PairFilter(), judged)
        extraction.extract(checkpoint, judged, output, trait=trait, minimum=2, **common)
        seals.seal(output, "", {}, "extract_vectors")

    def _projections(self, parts: list[str]) -> None:
        model, recipe, _, file = parts
        name, output = file.removesuffix(".parquet"), Path("results/projections", *parts)
        made = self.plan.projection(model, name)
        read = {"checkpoint": paths.checkpoint(model, recipe, SEED), "records": paths.records(made.dataset, made.split)}
        read |= plan.filled(made.inputs, model=model, parent=recipe, seed=SEED)
        files = {key: self.need(path) for key, path in read.items()}
        projections.project(
            files["checkpoint"], files["records"],
            {key.removeprefix("vector_"): path for key, path in files.items() if key.startswith("vector_")},
            Cut(self.blocks, deeper=True).of(made.plain), seed=0, dtype=plan.dtype(self.plan, model), threads=1,
            output=output, screening=output.with_suffix(".json"),
        )  # fmt: skip
        seals.seal(output, "", {}, "project_dataset")
