"""What a small job costs beyond its work, in CPU seconds: 300 prompts answered by a model of a million parameters."""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from bench.timing import Ratio
from bulwark.data.records import write_records
from bulwark.jobs import warm
from bulwark.miniature.model import model_config
from bulwark.miniature.settings import MiniatureSettings
from bulwark.miniature.tokenizer import build_tokenizer
from bulwark.miniature.words import THINGS
from bulwark.models import checkpoints, manifests
from bulwark.models.embeddings import install

PROMPTS, ROUNDS = 300, 5
# A job as Snakemake starts one: its classes are imported, then the script's call is run.
JOB = """
from snakemake.iocontainers import Snakemake
from pathlib import Path
from bulwark.benchmarks import benchmark_of
from bulwark.jobs.calls import run
from bulwark.logs import log_to

log_to("job.log")
run("bench.jobs.{function}", {{"folder": Path(".")}}, log="job.log")
"""


def answered(folder: Path) -> None:
    """The job: answer, and write down the CPU seconds that this process has used and its parent."""
    _answer(folder)
    (folder / "used.json").write_text(json.dumps([_used(), os.getppid()]))


def answered_twice(folder: Path) -> None:
    """Answer twice, and say what the second time took: the work without anything that is done once per process."""
    _answer(folder)
    before = _used()
    _answer(folder)
    (folder / "work.json").write_text(json.dumps(_used() - before))


def run() -> Iterator[Ratio]:
    """CPU seconds of a job, less those of its work, in the warm parent and in a fresh process; and their ratio."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _prepare(folder)
        here = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        here["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
        warm.offer(local=True)
        offered = {**here, warm.VARIABLE: os.environ.pop(warm.VARIABLE)}
        _, parent = _job(folder, offered, "answered")  # starts the parent
        costs: dict[str, list[float]] = {"warm": [], "fresh": []}
        for _ in range(ROUNDS):
            _job(folder, here, "answered_twice")
            work = json.loads((folder / "work.json").read_text())
            costs["warm"].append(_job(folder, offered, "answered", parent)[0] - work)
            costs["fresh"].append(_job(folder, here, "answered")[0] - work)
    for way, wanted in (("warm", "≤ 0.6"), ("fresh", "≤ 3.5")):
        seconds = costs[way]
        yield Ratio(
            f"CPU seconds beyond the work, {way}", statistics.median(seconds), min(seconds), max(seconds), wanted
        )
    ratios = [fresh / warm for fresh, warm in zip(costs["fresh"], costs["warm"], strict=True)]
    yield Ratio("the same, fresh / warm", statistics.median(ratios), min(ratios), max(ratios), "> 5")


def _prepare(folder: Path) -> None:
    from transformers import AutoModelForCausalLM, LlamaConfig

    torch.manual_seed(0)
    settings = MiniatureSettings()
    tokenizer = build_tokenizer(settings.model.max_position_embeddings)
    config = {name: value for name, value in model_config(settings.model, tokenizer).items() if name != "model_type"}
    model = AutoModelForCausalLM.from_config(LlamaConfig(**config))
    install(model, {"method": "ise"})
    checkpoints.save_model(model, tokenizer, folder / "base")
    manifests.write_manifest(folder / "base" / "checkpoint.json", {"template": "chat"})
    tasks = [
        {"id": str(n), "instruction": f"state the {THINGS[n % len(THINGS)]} .", "output": "hat ."}
        for n in range(PROMPTS)
    ]
    write_records(folder / "tasks.jsonl", tasks)


def _job(folder: Path, environment: dict[str, str], function: str, parent: int | None = None) -> tuple[float, int]:
    """CPU seconds of a job: of its process and, with a warm `parent`, of that and of its child; and the parent."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    parent_before = _used_by(parent) if parent else 0.0
    line = [sys.executable, "-c", JOB.format(function=function)]
    subprocess.run(line, env=environment, cwd=folder, check=True, stderr=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    own = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    if function != "answered":
        return own, 0
    child, its_parent = json.loads((folder / "used.json").read_text())
    return own + (child + _used_by(parent) - parent_before if parent else 0.0), its_parent


def _used_by(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _answer(folder: Path) -> None:
    from bulwark.benchmarks import benchmark_of
    from bulwark.evaluation.answer import answer

    decoding = {"max_new_tokens": 16, "do_sample": False, "temperature": 1.0, "top_p": 1.0, "max_prompt_tokens": 512}
    answer(
        folder / "base" / "checkpoint.json",
        folder / "tasks.jsonl",
        benchmark_of("tasks", {"decoding": decoding}),
        seed=0,
        dtype="float32",
        threads=1,
        answers=folder / "answers.jsonl",
        provenance=folder / "provenance.json",
    )


def _used() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime
