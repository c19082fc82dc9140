"""Our search for edits against the published one, heretic-llm 1.4.0 of PyPI: seconds per trial, and the fronts.

Both sides get the same model folder, prompts, system prompt, response length, number of trials and start-up trials, the
published objective, float32, and the same threads; HERETIC with the batch size that is its fastest here, all prompts at
once. The published ranges are shares of L - 1 layers, and within them no edit of a model of four blocks ends a refusal,
on either side; so both search the miniature's wider ranges (`published_search.py` hands them to the package's sampler).
HERETIC's seconds are those that Optuna notes per trial, ours those of the whole search over its trials.

All of this is done twice: with the miniature's answers, which are short, and with answers that go on to their last
token, because neither side is told of a token that ends them. Then decoding dominates, as with longer answers of larger
models.

heretic-llm is no dependency of this project: it lives in an environment of its own, which HERETIC_PYTHON names:

    python3.11 -m venv ~/heretic && ~/heretic/bin/pip install heretic-llm==1.4.0 torch==2.13.0
    HERETIC_PYTHON=~/heretic/bin/python .venv/bin/python -m bench search

The model and the prompts are the miniature's, below BULWARK_RESULTS (by default results/); they are made by
`snakemake --configfile config/miniature.yaml -c2 study_abliteration`.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import statistics
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from bench.timing import Ratio, seconds
from bulwark.abliteration.edit.hooks import Edits
from bulwark.abliteration.edit.targets import targets_of
from bulwark.abliteration.measure import directions
from bulwark.abliteration.measure.subject import read_prompts
from bulwark.abliteration.search import pareto
from bulwark.abliteration.search.objectives import scores
from bulwark.abliteration.search.search import Search
from bulwark.abliteration.search.trials import Examiner
from bulwark.abliteration.settings import AttackSettings
from bulwark.models.anatomy import blocks_of
from bulwark.models.open import open_model
from bulwark.models.residuals import last_token_residuals
from bulwark.settings import validated

NEVER = 10**6  # no token of the miniature's vocabulary
TRIALS, STARTUP, NEW_TOKENS, ROUNDS, BATCH = 60, 24, 100, 3, 6
SYSTEM = "you are a helpful assistant ."
USES = ("harmful_directions", "harmless_directions", "harmful_search", "harmless_search")
SETTINGS = {
    "prompts": {"harmful": "-", "harmless": "-", "system_prompt": SYSTEM},
    "dtype": "float32",
    "directions": {"orthogonalise": True, "final_norm": True, "protect": "measured"},
    "edit": {"normalization": "full", "through_norms": False},
    "space": {
        "max_weight": {"attention": [0.8, 1.5], "mlp": [0.8, 1.5]},
        "max_weight_position": [0.0, 1.0],
        "min_weight_distance": 2.0,
    },
    "objectives": {"relative": True, "kl_target": 0.01},
    "search": {
        "trials": TRIALS,
        "startup_trials": STARTUP,
        "trials_per_batch": BATCH,
        "max_new_tokens": NEW_TOKENS,
        "rule": "heretic",
    },
}


def run() -> Iterator[Ratio]:
    """HERETIC's seconds per trial over ours, and our hypervolume of log KL and refusals over its."""
    python = os.environ.get("HERETIC_PYTHON")
    if python is None:
        print("bench search: left out; HERETIC_PYTHON names no environment with heretic-llm==1.4.0 (bench/search.py)")
        return
    logging.disable(logging.INFO)
    results = Path(os.environ.get("BULWARK_RESULTS", "results"))
    files = {
        use: results / "data" / f"miniature_refusal_{use.split('_')[0]}" / f"{split}.jsonl"
        for use, split in zip(USES, ("train", "train", "validation", "validation"), strict=True)
    }
    model = results / "models" / "miniature"
    for path in (model / "model.json", *files.values()):
        if not path.exists():
            raise SystemExit(f"{path} is missing; the docstring of bench/search.py says what makes it.")
    with tempfile.TemporaryDirectory() as scratch:
        endless = Path(scratch) / "endless"
        _never_ending(model, endless)
        for ending, answers in ((True, "answers as they end"), (False, f"answers of {NEW_TOKENS} tokens")):
            faster, better = [], []
            for seed in range(ROUNDS):
                theirs = _theirs(python, model if ending else endless, files, seed)
                ours, took = _ours(model, files, seed, ending)
                told = [_front(theirs), _front(ours)]
                for name, front in zip(("heretic-llm", "ours"), told, strict=True):
                    print(f"seed {seed}, {name}: " + ", ".join(f"{refusals} at {kl:.5f}" for refusals, kl in front))
                mean = statistics.mean(trial["seconds"] for trial in theirs)
                print(f"seed {seed}: {mean:.3f} s per trial, ours {took / TRIALS:.3f} s", flush=True)
                faster.append(mean / (took / TRIALS))
                better.append(_volume(ours) / max(_volume(theirs), 1e-9))
            yield _ratio(f"seconds per trial, heretic-llm 1.4.0 / ours, {answers}", faster, "≥ 5")
            yield _ratio(f"hypervolume of (log KL, refusals), ours / heretic-llm 1.4.0, {answers}", better, "≥ 1")


def _never_ending(model: Path, folder: Path) -> None:
    """The same model in another folder, where the token that ends answers is one that is never written."""
    shutil.copytree(model, folder)
    path = folder / "generation_config.json"
    generation = json.loads(path.read_text())
    path.write_text(json.dumps(generation | {"eos_token_id": NEVER}))


def _theirs(python: str, model: Path, files: dict[str, Path], seed: int) -> list[dict]:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for use, path in files.items():
            texts = [json.loads(line)["prompt"] for line in path.read_text().splitlines()]
            (folder / f"{use}.txt").write_text("".join(f"{text}\n" for text in texts))
        sets = {
            "good_prompts": "harmless_directions",
            "bad_prompts": "harmful_directions",
            "good_evaluation_prompts": "harmless_search",
            "bad_evaluation_prompts": "harmful_search",
        }
        lines = [
            f'model = "{model.resolve()}"',
            'dtypes = ["float32"]',
            f"batch_size = {len(files['harmful_search'].read_text().splitlines())}",
            f"max_response_length = {NEW_TOKENS}",
            'response_prefix = ""',
            f"n_trials = {TRIALS}",
            f"n_startup_trials = {STARTUP}",
            f"seed = {seed}",
            f'system_prompt = "{SYSTEM}"',
            *(f'[{key}]\ndataset = "{folder / use}.txt"' for key, use in sets.items()),
        ]
        last = json.loads((model / "config.json").read_text())["num_hidden_layers"] - 1
        ranges = {"max_weight_position": [0.0, last], "min_weight_distance": [1.0, 2.0 * last]}
        (folder / "ranges.json").write_text(json.dumps(ranges))
        (folder / "config.toml").write_text("\n".join(lines) + "\n")
        environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads()), "HF_HUB_OFFLINE": "1"}
        environment.pop("PYTHONPATH", None)
        side = Path(__file__).with_name("published_search.py")
        done = subprocess.run([python, str(side), str(folder)], env=environment, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"heretic-llm failed:\n{(done.stdout + done.stderr)[-3000:]}")
        told = json.loads((folder / "trials.json").read_text())
    print(f"seed {seed}: {told['versions']}")
    return told["trials"]


def _ours(model: Path, files: dict[str, Path], seed: int, ending: bool) -> tuple[list[dict], float]:
    settings = validated(AttackSettings, SETTINGS, "bench")
    subject = open_model(model, "float32")
    if not ending:
        subject.builder.stop_ids = [NEVER]
    prompts = read_prompts(files, settings.prompts, subject.builder)
    sides = [
        last_token_residuals(subject.model, getattr(prompts, use), subject.builder.pad_id, final_norm=True)
        for use in USES[:2]
    ]
    found = directions.estimate(*sides, settings.directions)
    edits = Edits(targets_of(subject.model, through_norms=False), "full")
    examiner = Examiner(subject, edits, prompts, settings.search, settings.objectives, seed)
    with tempfile.TemporaryDirectory() as scratch:
        search = Search(Path(scratch) / "journal", settings, len(blocks_of(subject.model)), seed, "bench")

        def examine(proposed, known):
            return examiner.examine([one.plan(found, edits) for one in proposed], known)

        took = seconds(
            lambda: search.run(examine, lambda one: scores(one.measures, examiner.base, settings.objectives))
        )
        return search.records(), took


def _front(trials: list[dict]) -> list[tuple[int, float]]:
    """(refusals, KL) that no other trial dominates, by refusals."""
    points = sorted({(trial["refusals"], trial["kl"]) for trial in trials})
    return [points[place] for place in pareto.front(points)]


def _volume(trials: list[dict]) -> float:
    return pareto.front_volume([(trial["kl"], trial["refusals"] / trial["n"]) for trial in trials])


def _ratio(what: str, values: list[float], wanted: str) -> Ratio:
    return Ratio(what, statistics.median(values), min(values), max(values), wanted)
