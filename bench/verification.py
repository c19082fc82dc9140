"""What it costs to verify what a job reads: of an 8B model as a share of a job, and of a small job in CPU seconds."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from bench.timing import Ratio, seconds
from bulwark import seals
from bulwark.jobs.sealing import Sealing, sealed
from bulwark.miniature.settings import MiniatureSettings
from bulwark.models import manifests
from bulwark.settings import read_yaml

WEIGHTS, SHARDS = 16e9, 4  # bytes of 8 billion parameters in bfloat16, and the files they lie in
SHARD = 1 << 28  # bytes of a file that is hashed here
ROUNDS = 5
MODEL = Path("config/models/llama3.1-8b.yaml")


def run() -> Iterator[Ratio]:
    """Percent of the expected hours of a job, and seconds."""
    with tempfile.TemporaryDirectory() as name:
        os.environ["XDG_CACHE_HOME"] = f"{name}/cache"
        folder = Path(name) / "results/checkpoints/m/base/seed0"
        yield from _of_a_large_model(folder)
    with tempfile.TemporaryDirectory() as name:
        os.environ["XDG_CACHE_HOME"] = f"{name}/cache"
        yield from _of_a_small_job(Path(name))


def _of_a_large_model(folder: Path) -> Iterator[Ratio]:
    folder.mkdir(parents=True)
    block = os.urandom(1 << 20)
    for number in range(SHARDS):
        with (folder / f"model-{number + 1:05d}-of-{SHARDS:05d}.safetensors").open("wb") as file:
            for _ in range(SHARD // len(block)):
                file.write(block)
    manifest = folder / "checkpoint.json"
    manifests.write_manifest(manifest, {"template": "chat"})
    time.sleep(2.5)  # what has just changed is not remembered
    first, again = [], []
    for _ in range(ROUNDS):
        for entry in (folder.parents[4] / "cache").rglob("*.json"):
            entry.unlink()
        for times in (first, again):
            seals._found.clear()
            times.append(seconds(lambda: manifests.read_manifest(manifest)))
    scale = WEIGHTS / (SHARDS * SHARD)
    hours = {stage: needed["hours"] for stage, needed in read_yaml(MODEL)["resources"].items()}
    for stage, expected in hours.items():
        shares = sorted(100 * scale * one / (expected * 3600) for one in first)
        yield _ratio(f"8B, first verification on a machine, % of a job ({stage}, {expected:g} h)", shares, "≤ 1")
    yield _ratio("8B, seconds of it", sorted(scale * one for one in first))
    yield _ratio("8B, seconds of every later one", sorted(again))


def _of_a_small_job(folder: Path) -> Iterator[Ratio]:
    """A job of the miniature reads a model and records, and makes answers and their provenance."""
    here = os.getcwd()
    os.chdir(folder)
    try:
        checkpoint, records = "results/checkpoints/m/base/seed0/checkpoint.json", "results/data/d/test.jsonl"
        size = MiniatureSettings().model
        for path, count in ((checkpoint, 0), (records, 50_000)):
            Path(path).parent.mkdir(parents=True)
            Path(path).write_bytes(os.urandom(count))
        weights = 4 * size.layers * (4 * size.hidden_size**2 + 3 * size.hidden_size * size.intermediate_size)
        Path(checkpoint).with_name("model.safetensors").write_bytes(os.urandom(weights))
        manifests.write_manifest(checkpoint, {"template": "chat"})
        for path in (checkpoint, records):
            seals.seal(path, "asked", {}, "rule")
        outputs = "results/answers/a.jsonl", "results/answers/a.provenance.json"
        Path("results/answers").mkdir()
        times = []
        for _ in range(4 * ROUNDS):
            before = time.process_time()
            with sealed(Sealing((checkpoint, records), outputs, "asked", "rule")):
                manifests.read_manifest(checkpoint)
                left = time.process_time()
                for output in outputs:
                    Path(output).write_text(json.dumps([0] * 5000))
                came = time.process_time()
            times.append(time.process_time() - before - (came - left))
        yield _ratio("a small job, CPU seconds of verifying and sealing", sorted(times), "≤ 0.05")
    finally:
        os.chdir(here)


def _ratio(what: str, times: list[float], wanted: str = "") -> Ratio:
    return Ratio(what, times[len(times) // 2], times[0], times[-1], wanted)
