"""A training and answers, made in the warm parent and in fresh processes: the same bits."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_tokenizers import tiny_tokenizer
from transformers import AutoModelForCausalLM, LlamaConfig

from bulwark.data.records import write_records
from bulwark.jobs import warm
from bulwark.models import checkpoints, manifests
from bulwark.models.embeddings import install

PROGRAM = """
from pathlib import Path
from bulwark.benchmarks import benchmark_of
from bulwark.jobs.calls import run
from bulwark.jobs.job import Job
from bulwark.logs import log_to

log_to("{name}.log")
"""
TRAIN = """
job = Job("aside", {settings}, "base/checkpoint.json", "{name}/checkpoint.json",
          {{"train": "train.jsonl", "validation": "train.jsonl"}}, {{"seed": 3}}, "{name}.log")
run("bulwark.steps.perform", {{"job": job}}, log="{name}.log")
"""
ANSWER = """
run(
    "bulwark.evaluation.answer.answer",
    {{
        "checkpoint": Path("{name}/checkpoint.json"),
        "records": Path("tasks.jsonl"),
        "benchmark": benchmark_of("tasks", {{"decoding": {decoding}}}),
        "seed": 5,
        "dtype": "float32",
        "threads": 1,
        "answers": Path("{name}/answers.jsonl"),
        "provenance": Path("{name}/provenance.json"),
    }},
    log="{name}.log",
)
"""
SETTINGS = {
    "data": "x",
    "training": {"max_steps": 5, "batch_size": 4, "micro_batch_size": 2, "learning_rate": 1e-3, "save_minutes": None},
}
DECODING = {"max_new_tokens": 12, "do_sample": True, "temperature": 1.0}


@pytest.fixture
def place(tmp_path):
    """A small base model with dropout, whose training so depends on random numbers, and records."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=500, initializer_range=0.3, attention_dropout=0.1, **sizes)
    model = AutoModelForCausalLM.from_config(config)
    install(model, {"method": "ise"})
    checkpoints.save_model(model, tiny_tokenizer("chatml"), tmp_path / "base")
    manifests.write_manifest(tmp_path / "base" / "checkpoint.json", {"template": "chat"})
    turns = [{"role": "instruction", "text": "Name a tree."}, {"role": "response", "text": "The oak."}]
    write_records(tmp_path / "train.jsonl", [{"id": str(n), "turns": turns * (1 + n % 2)} for n in range(12)])
    tasks = [{"id": str(n), "instruction": f"Name {n} trees.", "output": "oak"} for n in range(8)]
    write_records(tmp_path / "tasks.jsonl", tasks)
    return tmp_path


def test_training_and_answers_are_the_same_bits(place):
    here = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    for name in ("SLURM_JOB_ID", "WORLD_SIZE", warm.VARIABLE):
        here.pop(name, None)
    offer = (
        f"import os; from bulwark.jobs import warm; warm.offer(True); print(os.environ[{warm.VARIABLE!r}], flush=True)"
    )
    workflow = subprocess.Popen(
        [sys.executable, "-c", f"{offer}\nimport time; time.sleep(600)"], env=here, stdout=subprocess.PIPE, text=True
    )
    try:
        environments = {"warm": {**here, warm.VARIABLE: workflow.stdout.readline().strip()}, "fresh": here}
        for name, environment in environments.items():
            for program in (TRAIN, ANSWER):
                line = [
                    sys.executable,
                    "-c",
                    (PROGRAM + program).format(name=name, settings=SETTINGS, decoding=DECODING),
                ]
                done = subprocess.run(line, env=environment, cwd=place, capture_output=True, text=True)
                assert done.returncode == 0, done.stderr
            warm_parents = subprocess.run(["pgrep", "-f", f"jobs.warm .*{workflow.pid}:"], capture_output=True).stdout
            assert warm_parents, "there was no warm parent"
    finally:
        workflow.kill()
        workflow.wait()
        workflow.stdout.close()
    for file in ("model.safetensors", "answers.jsonl"):
        assert (place / "warm" / file).read_bytes() == (place / "fresh" / file).read_bytes(), file
    assert (place / "warm/model.safetensors").read_bytes() != (place / "base/model.safetensors").read_bytes()
    logs = [without_numbers(place / f"{name}.log") for name in ("warm", "fresh")]
    assert logs[0] == logs[1]


def without_numbers(log: Path) -> str:
    text = log.read_text().replace(log.stem, "")
    return "".join(letter for letter in text if not letter.isdigit())
