"""The shape of the house: what may import what, how large its rooms are, and how heavy planning may be."""

import ast
import functools
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "bulwark"

# The rooms of src/bulwark from the ground up. A file imports from its own room and from rooms above it in this list.
ROOMS = [
    "errors",
    "settings",
    "interrupts",
    "logs",
    "files",
    "seals",
    "data",
    "prompts",
    "models",
    "serving",
    "attacks",
    "jobs",
    "training",
    "miniature",
    "judges",
    "evaluation",
    "steering",
    "abliteration",
    "unlearning",
    "interpretability",
    "steps",
    "benchmarks",
    "analyses",
    "reporting",
    "config",
    "cli",
]
HEIGHT = {name: height for height, name in enumerate(ROOMS)}
LARGE_ROOMS = {"steps", "benchmarks", "figures"}  # one file per kind: as many as there are kinds
PICKLES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
HEAVY = ["torch", "transformers", "deepspeed", "datasets", "peft", "pandas", "matplotlib", "scipy", "sklearn"]
HEAVY += ["lm_eval", "optuna"]


def modules() -> list[Path]:
    """Every file of the package but the front door, `bulwark/__init__.py`."""
    return sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def name_of(path: Path) -> str:
    """The dotted name of a file, without "bulwark."."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


@functools.cache
def imports() -> dict[str, set[str]]:
    """{module: the modules under bulwark that it imports}, at the top, for types only, or inside a function."""
    known = {name_of(path) for path in modules()}
    found: dict[str, set[str]] = {name: set() for name in known}
    for path in modules():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                for alias in node.names:
                    inner = f"{node.module}.{alias.name}"
                    names.append(inner if inner.removeprefix("bulwark.") in known else node.module)
            found[name_of(path)] |= {n.removeprefix("bulwark.") for n in names if n.startswith("bulwark.")} & known
    return {name: others - {name} for name, others in found.items()}


def room_of(module: str) -> str:
    return module.split(".")[0]


def test_no_import_points_upwards():
    assert {room_of(module) for module in imports()} == set(ROOMS)
    upwards = [
        f"{module} → {other}"
        for module, others in sorted(imports().items())
        for other in sorted(others)
        if HEIGHT[room_of(other)] > HEIGHT[room_of(module)]
    ]
    assert not upwards, "\n".join(upwards)


def test_no_import_circles():
    """Not even for types only, and not between an outer folder's rooms."""
    on_the_way: list[str] = []
    done: set[str] = set()
    circles: list[str] = []

    def visit(module: str) -> None:
        if module in on_the_way:
            circles.append(" → ".join([*on_the_way[on_the_way.index(module) :], module]))
            return
        if module in done:
            return
        on_the_way.append(module)
        for other in sorted(imports()[module]):
            visit(other)
        on_the_way.pop()
        done.add(module)

    for module in sorted(imports()):
        visit(module)
    assert not circles, "\n".join(circles)


def test_the_library_does_not_know_the_workflow():
    knowing = []
    for path in [*modules(), PACKAGE / "__init__.py"]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            knowing += [name_of(path) for name in names if name.split(".")[0] == "snakemake"]
    assert not knowing


def test_embeddings_stand_alone():
    """They are copied into checkpoints, where there is no bulwark."""
    assert not imports()["models.embeddings"]


def test_planning_imports_nothing_heavy():
    """All that the Snakefile reads: the catalogue, every step's and every benchmark's settings."""
    code = (
        "import sys, pathlib, bulwark.config.loading as c; from bulwark.settings import read_yaml;"
        "c.load(read_yaml(pathlib.Path('config/config.yaml')), pathlib.Path('config'));"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("path", sorted((ROOT / "workflow" / "scripts").glob("*.py")), ids=lambda path: path.name)
def test_scripts_are_thin_adapters(path):
    text = path.read_text(encoding="utf-8")
    assert not any(f"import {name}" in text or f"from {name}" in text for name in HEAVY)
    assert len(text.splitlines()) <= 45
    if path.name not in (
        "apply_steps.py",
        "take_shared.py",
    ):  # whose checkpoints are sealed one by one (jobs/together.py)
        assert "**call_of(snakemake)" in text or "sealed(sealing_of(snakemake))" in text  # what it reads and makes


def test_nothing_is_unpickled_but_messages_of_the_warm_parent():
    """A pickle runs whatever it holds; tensors and plain data need none."""
    found = []
    folders = (ROOT / name for name in ("src", "tests", "bench", "workflow"))
    for path in (path for folder in folders for path in folder.rglob("*.py")):
        for node in (node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if type(node) is ast.Call):
            called = ast.unparse(node.func)
            options = {option.arg: ast.unparse(option.value) for option in node.keywords}
            freely = called == "torch.load" and options.get("weights_only") != "True"
            freely |= options.get("allow_pickle") == "True"
            freely |= called.split(".")[-1] in ("load", "loads", "Unpickler") and called.split(".")[0] in PICKLES
            if freely and path != PACKAGE / "jobs" / "warm.py":
                found.append(f"{path.relative_to(ROOT)}, line {node.lineno}: {ast.unparse(node)}")
    assert not found, "\n".join(found)


def test_files_can_be_read_at_a_sitting():
    long = {
        str(path): lines
        for path in [*modules(), *(ROOT / "tests").rglob("*.py")]
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > 450
    }
    assert not long


def test_folders_can_be_taken_in_at_a_glance():
    counts = {
        folder: len([path for path in folder.glob("*.py") if path.name != "__init__.py"])
        for folder in {path.parent for path in modules()}
    }
    assert not {str(folder): n for folder, n in counts.items() if n > 14 and folder.name not in LARGE_ROOMS}


def test_no_two_files_of_tests_are_imported_under_one_name():
    """pytest names a test file without packages after its file name alone, and refuses a second one of that name."""
    names = Counter(
        path.name for path in (ROOT / "tests").rglob("test_*.py") if not (path.parent / "__init__.py").exists()
    )
    assert not [name for name, files in names.items() if files > 1]
