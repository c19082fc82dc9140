"""Benchmarks: one module each, found by its name. `bulwark.evaluation.benchmark` says what such a module has."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any

from bulwark.evaluation.benchmark import Benchmark
from bulwark.settings import Closed, module_named, validated


def module_of(name: str) -> ModuleType:
    """Import the benchmark module `name`. Raises ConfigurationError with the nearest name if there is none."""
    return module_named(__name__, name, "benchmark module")


def benchmark_of(module: str, settings: Mapping[str, Any] | Closed) -> Benchmark:
    """The benchmark of a module with these settings. Raises ConfigurationError for an unknown module or wrong ones."""
    code = module_of(module)
    if not isinstance(settings, Closed):
        settings = validated(code.Settings, settings, f"settings of the benchmark {module}")
    return code.Benchmark(settings)
