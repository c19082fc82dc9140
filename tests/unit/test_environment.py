"""One list of pins: environment.yml repeats pyproject.toml, and the installed packages are the pinned ones."""

import importlib.metadata
import re
import tomllib
from pathlib import Path

import yaml

from tests.conftest import SHARING

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
REQUIRED = {"snakemake", "torch", "transformers", "deepspeed", "datasets", "peft", "alpaca_eval", "pandas"} | {
    "matplotlib",
    "pytest",
    "pytest-xdist",
}


def pins(lines) -> dict[str, str]:
    found = {}
    for line in lines:
        match = re.fullmatch(r"([A-Za-z0-9_.-]+)==([\w.]+)", line)
        assert match, f"{line} is not pinned as NAME==VERSION"
        found[match[1]] = match[2]
    return found


def test_environment_and_pyproject_name_the_same_pins():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    pip = next(entry["pip"] for entry in environment if isinstance(entry, dict))
    assert pins(line for line in pip if not line.startswith("-e")) == pins(PROJECT["dependencies"])
    assert "-e ." in pip
    python = next(entry for entry in environment if str(entry).startswith("python="))
    assert python == "python=3.11"


def test_what_tests_can_be_told_to_require_is_required_in_ci():
    """A test that is skipped there, because what it needs is missing, would go unseen."""
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    asked = {
        name
        for file in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"BULWARK_REQUIRE_[A-Z]+", file.read_text(encoding="utf-8"))
    }
    assert asked == {"BULWARK_REQUIRE_SLURM", "BULWARK_REQUIRE_AGENT", "BULWARK_REQUIRE_BROWSER"}
    for name in asked:
        assert re.search(rf"^export .*\b{name}=1\b", ci, re.MULTILINE), name


def test_the_required_packages_are_pinned():
    assert set(pins(PROJECT["dependencies"])) >= REQUIRED


def test_what_is_installed_is_what_is_pinned():
    different = {
        name: (version, importlib.metadata.version(name))
        for name, version in pins(PROJECT["dependencies"]).items()
        if importlib.metadata.version(name).split("+")[0] != version
    }
    assert not different


def test_extras_are_pinned_and_installed_where_they_are_needed():
    extras = PROJECT["optional-dependencies"]
    assert all(pins(lines) for lines in extras.values())
    recipes = (ROOT / "Makefile").read_text()
    assert [name for name in extras if f"pip install --quiet -e '.[{name}]'" not in recipes] == []
    assert "make test" in (ROOT / ".ci" / "run").read_text()


def test_files_that_share_a_fixture_are_where_they_are_looked_for():
    for fixture, files in SHARING.items():
        through = {"finished": "|steered"}.get(fixture, "")  # a fixture of the session that asks for it
        asks = re.compile(rf"^def \w+\([^)]*\b({fixture}{through})\b", re.MULTILINE)
        paths = (ROOT / "tests" / "end_to_end").glob("test_*.py")
        assert {path.name for path in paths if asks.search(path.read_text())} == files, fixture
