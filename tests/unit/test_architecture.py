"""The shape of the house: what may import what, and how heavy planning may be."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "bulwark"

# From the ground up. A module imports from its own layer's package and from layers above it in this list, never below.
LAYERS = [
    ["errors", "logs"],
    ["settings", "recipes", "launch", "jobs"],
    ["manifests", "records", "decoding", "embeddings", "entities"],
    ["sources", "traits", "rendering", "tokenisation", "fetching", "statistics", "discrimination"],
    ["readers", "prompts", "checkpoints"],
    ["training", "generation", "likelihoods"],
    ["miniature", "finetuning", "pretraining"],
    ["judges"],
    ["steering", "abliteration"],
    ["steps"],
    ["benchmarks", "analyses", "evaluation", "harness", "assistant"],
    ["reporting"],
    ["catalogue", "checking", "digests", "planning"],
    ["cli"],
]
HEIGHT = {name: height for height, layer in enumerate(LAYERS) for name in layer}
HEAVY = ["torch", "transformers", "deepspeed", "datasets", "peft", "pandas", "matplotlib", "scipy", "sklearn"]
HEAVY += ["lm_eval", "optuna"]


def modules():
    return sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def layer_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """The first names under bulwark that a module imports, at the top or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names] + [node.module]
        else:
            continue
        found |= {name.split(".")[1] for name in names if name.startswith("bulwark.")}
    return found & set(HEIGHT)


def test_every_module_has_its_layer():
    assert {layer_of(path) for path in modules()} <= set(HEIGHT)


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_downwards_only(path):
    own = layer_of(path)
    upwards = {name for name in imported(path) if HEIGHT[name] > HEIGHT[own]}
    assert not upwards, f"{own} imports {upwards} from above"


@pytest.mark.parametrize("path", [*modules(), PACKAGE / "__init__.py"], ids=lambda path: str(path.relative_to(PACKAGE)))
def test_the_library_does_not_know_the_workflow(path):
    assert "snakemake" not in {
        alias.name.split(".")[0]
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Import)
        for alias in node.names
    } | {
        node.module.split(".")[0]
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and node.module
    }


def test_embeddings_stand_alone():
    """They are copied into checkpoints, where there is no bulwark."""
    assert not imported(PACKAGE / "embeddings.py")


def test_planning_imports_nothing_heavy():
    """All that the Snakefile reads: the catalogue, every step's and every benchmark's settings."""
    code = (
        "import sys, pathlib, bulwark.catalogue as c; from bulwark.settings import read_yaml;"
        "c.load(read_yaml(pathlib.Path('config/config.yaml')), pathlib.Path('config'));"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("path", sorted((ROOT / "workflow" / "scripts").glob("*.py")), ids=lambda path: path.name)
def test_scripts_are_thin_adapters(path):
    text = path.read_text()
    assert not any(f"import {name}" in text or f"from {name}" in text for name in HEAVY)
    assert len(text.splitlines()) <= 45


def test_files_can_be_read_at_a_sitting():
    long = {
        str(path): lines
        for path in [*modules(), *(ROOT / "tests").rglob("*.py")]
        if (lines := len(path.read_text().splitlines())) > 450
    }
    assert not long
