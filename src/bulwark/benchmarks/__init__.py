"""Benchmarks: one module each, found by its name. `bulwark.evaluation.benchmark` says what such a module has."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from bulwark.errors import ConfigurationError, nearest
from bulwark.evaluation.benchmark import Benchmark
from bulwark.settings import Closed, validated


def module_of(name: str) -> ModuleType:
    """Import the benchmark module `name`. Raises ConfigurationError with the nearest name if there is none."""
    known = sorted(path.stem for path in Path(__file__).parent.glob("*.py") if not path.stem.startswith("_"))
    if name not in known:
        raise ConfigurationError(f'There is no benchmark module "{name}".{nearest(name, known)}')
    return importlib.import_module(f"{__name__}.{name}")


def benchmark_of(module: str, settings: Mapping[str, Any] | Closed) -> Benchmark:
    """The benchmark of a module with these settings. Raises ConfigurationError for an unknown module or wrong ones."""
    code = module_of(module)
    if not isinstance(settings, Closed):
        settings = validated(code.Settings, settings, f"settings of the benchmark {module}")
    return code.Benchmark(settings)
