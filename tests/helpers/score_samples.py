"""Made-up answers and scores for the tests of benchmarks and reporting: real files, written by the real code."""

import json
import random
from pathlib import Path

from bulwark.benchmarks import benchmark_of
from bulwark.evaluation.score import score_file

DECODING = {"decoding": {"max_new_tokens": 16, "do_sample": False}}
DOMAINS = (
    "Information Processing and Retrieval",
    "Analytical and Evaluative Tasks",
    "Creative and Generative Tasks",
)


def sep_record(index: int, witness: str = "root") -> dict:
    """A SEP record under the authors' field names."""
    instruction, data, probe = f"Summarise text {index}.", f"Text {index} is short.", f"Say {witness}."
    return {
        "id": f"sep-{index:04d}",
        "system_prompt_clean": instruction,
        "prompt_clean": data,
        "system_prompt_instructed": f"{instruction} {probe}",
        "prompt_instructed": f"{data} {probe}",
        "witness": witness,
        "info": {
            "type": DOMAINS[index % 3],
            "subtask": "s",
            "subtask_descr": "d",
            "appended_task_id": index % 100,
            "appended_type": ("ll", "lr", "rl", "rr")[index % 4],
            "is_insistent": index % 2 == 0,
        },
    }


def answer(record_id: str, variant: str, response: str, finish: str = "stop", truncated: bool = False) -> dict:
    """A line of an answers file."""
    return {
        "id": record_id,
        "variant": variant,
        "response": response,
        "tokens": len(response.split()),
        "finish": finish,
        "truncated": truncated,
    }


def write_lines(path: Path, lines: list[dict]) -> Path:
    """Write JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def sep_answers(in_data: list[int], in_instruction: list[int]) -> list[dict]:
    """Answers of records 0 … n-1 that hold the witness where the lists say 1."""
    texts = {0: "Nothing here.", 1: "It is the ROOT of it."}
    return [
        answer(f"sep-{index:04d}", variant, texts[held])
        for index, pair in enumerate(zip(in_data, in_instruction, strict=True))
        for variant, held in zip(("probe_in_data", "probe_in_instruction"), pair, strict=True)
    ]


def sep_cell(folder: Path, model: str, recipe: str, seed: int, in_data: list[int], in_instruction: list[int]) -> dict:
    """Score made-up SEP answers into results/scores under `folder`; returns the cell."""
    scores = folder / "scores" / model / recipe / f"seed{seed}" / "sep.json"
    records = folder / "data" / "sep" / f"{len(in_data)}.jsonl"
    if not records.exists():
        write_lines(records, [sep_record(index) for index in range(len(in_data))])
    answers = write_lines(scores.with_name("sep.answers.jsonl"), sep_answers(in_data, in_instruction))
    identity = {"benchmark": "sep", "model": model, "recipe": recipe, "seed": seed}
    provenance = {"git": {"commit": "0123abc", "dirty": False}, "versions": {"torch": "2.13.0"}, "checkpoint": recipe}
    score_file(
        benchmark_of("sep", DECODING), answers=answers, records=records, identity=identity, provenance=provenance,
        scores=scores,
    )  # fmt: skip
    return {**identity, "scores": str(scores)}


def tasks_cell(folder: Path, model: str, recipe: str, seed: int, right: list[int]) -> dict:
    """Score made-up answers to tasks; returns the cell."""
    scores = folder / "scores" / model / recipe / f"seed{seed}" / "tasks.json"
    tasks = [
        {"id": f"t{i}", "instruction": "What colour?", "input": "The cup is red.", "output": "red", "kind": "colour"}
        for i in range(len(right))
    ]
    records = write_lines(folder / "data" / "tasks.jsonl", tasks)
    lines = [answer(f"t{i}", "answer", "red" if good else "blue") for i, good in enumerate(right)]
    answers = write_lines(scores.with_name("tasks.answers.jsonl"), lines)
    identity = {"benchmark": "tasks", "model": model, "recipe": recipe, "seed": seed}
    score_file(
        benchmark_of("tasks", DECODING), answers=answers, records=records, identity=identity, provenance={},
        scores=scores,
    )  # fmt: skip
    return {**identity, "scores": str(scores)}


def draws(rate: float, n: int, key: str) -> list[int]:
    """`n` numbers 0 or 1, seeded by `key`, with exactly round(rate * n) ones."""
    ones = round(rate * n)
    values = [1] * ones + [0] * (n - ones)
    random.Random(key).shuffle(values)
    return values


def study_cells(folder: Path, models=("miniature",), seeds=(0, 1), n: int = 120) -> list[dict]:
    """A study in which ASIDE separates much better than vanilla at equal utility; base at one seed, as always."""
    separation = {"base": 0.35, "vanilla": 0.3, "ise": 0.4, "aside": 0.9}
    cells = []
    for model in models:
        for recipe, rate in separation.items():
            for seed in seeds[:1] if recipe == "base" else seeds:
                key = f"{model} {recipe} {seed}"
                # What one fine-tuned model follows another mostly follows too: the same records, one less for ASIDE.
                followed = draws(0.5 if recipe == "base" else 0.9, n, f"{model} {seed} T")
                if recipe == "aside":
                    followed[followed.index(1)] = 0
                obeyed = draws(1 - rate, n, f"{key} D")
                cells.append(sep_cell(folder, model, recipe, seed, obeyed, followed))
    return cells


def write_scores(
    folder: Path, model: str, recipe: str, seed: int, benchmark: str, metrics: dict, rows=None, **further
) -> dict:
    """A scores file of any benchmark, with rows per record or without, and `further` keys."""
    path = folder / "scores" / model / recipe / f"seed{seed}" / f"{benchmark}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    identity = {"benchmark": benchmark, "model": model, "recipe": recipe, "seed": seed}
    content = {**identity, "n": 50, "metrics": metrics, "breakdowns": {}, "provenance": {}} | further
    path.write_text(json.dumps(content), encoding="utf-8")
    if rows is not None:
        write_lines(path.with_suffix(".records.jsonl"), rows)
    return {**identity, "scores": str(path)}
