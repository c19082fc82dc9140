"""What importing costs a job: planning needs no torch, answering no deepspeed, scoring neither."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
SCRIPTS = sorted((ROOT / "workflow" / "scripts").glob("*.py"))
HEAVY = {"torch", "transformers", "deepspeed", "datasets", "peft", "pandas", "matplotlib", "sklearn", "lm_eval"}
HEAVY |= {"optuna", "accelerate", "scipy"}
# What the modules that do the work may load when they are imported, beyond nothing of HEAVY.
LOADED = {
    "bulwark.evaluation.answer": set(),
    "bulwark.benchmarks": set(),
    "bulwark.analyses": set(),
    "bulwark.steps": set(),
    "bulwark.reporting.figures": {"scipy"},
    "bulwark.reporting.claims": {"scipy"},
    "bulwark.reporting.report": {"scipy"},
    "bulwark.reporting.tables": {"scipy", "pandas"},
    "bulwark.models.open": {"torch", "transformers", "accelerate", "scipy"},
    "bulwark.steering.vectors.pairs": set(),
    "bulwark.steering.vectors.layers": set(),
    "bulwark.steering.vectors.projections": set(),
}


def loaded(program: str) -> set[str]:
    """The packages of HEAVY that a program has loaded at its end."""
    program += f"\nimport os, sys\nprint(*({HEAVY!r} & sys.modules.keys()), flush=True)\nos._exit(0)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_scripts_import_nothing_heavy():
    """All in one process: a package that any of them loads shows."""
    imports = [
        ast.unparse(node)
        for path in SCRIPTS
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.Import | ast.ImportFrom) and path.stem not in ("check_claims", "adopt_vectors")
    ]
    assert len(imports) > 30
    assert loaded("\n".join(imports)) == set()


@pytest.mark.parametrize("module", LOADED)
def test_modules_of_jobs_load_no_more_than_they_need(module):
    assert loaded(f"import {module}") <= LOADED[module]
