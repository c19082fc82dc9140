"""What is measured on a GPU: the same code small on the CPU, its floors by hand, and what it says without a GPU."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def printed(*options: str) -> str:
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    line = [sys.executable, "-m", "bench.gpu", *options]
    return subprocess.run(line, cwd=ROOT, env=environment, text=True, capture_output=True, check=True).stdout


def test_the_tiny_shape_goes_through_everything():
    lines = printed("--shape", "tiny", "--device", "cpu").splitlines()
    names = ["matmul", "copy", "training step, 64 tokens", "training step: aside", "training step: delta-loss"]
    names += ["generation, 6 prompts", "generation: `generate`", "abliteration trial, 12 prompts"]
    assert [line[: len(name)] for line, name in zip(lines, names, strict=True)] == names
    for line in lines:
        assert float(re.search(r": ([\d.e+-]+) \(", line)[1]) > 0
    # four blocks: q and o 32², k and v 32·16, three of 32·64, two norms; a norm; the output embedding of 300 rows
    used = 4 * (2 * 32**2 + 2 * 32 * 16 + 3 * 32 * 64 + 2 * 32) + 32 + 300 * 32
    attention = 4 * sum(2 * 2 * 32 * (place + 1) for place in range(32))  # of a row: q·k and p·v with what comes before
    flops, read = (float(found) for found in re.search(r"floors: (\S+) FLOPs .*?, (\S+) bytes", lines[2]).groups())
    assert flops == pytest.approx(6 * used * 64 + 3 * 2 * attention, rel=0.02)  # backward counts twice; two rows
    assert read == pytest.approx(6 * 4 * (used + 300 * 32), rel=0.01)
    flops, read = (float(found) for found in re.search(r"floors: (\S+) FLOPs .*?, (\S+) bytes", lines[7]).groups())
    assert read == pytest.approx((2 + 8) * 4 * used, rel=0.01)
    assert 2 * used * 6 * (9 + 9 + 8) <= flops * 1.01 <= 2 * used * 6 * (14 + 14 + 8) * 1.02


def test_without_a_gpu_it_says_what_it_would_measure():
    said = printed()
    assert said.startswith("No GPU")
    for word in ("matmul", "MFU", "generation", "trial"):
        assert word in said
