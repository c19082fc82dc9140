"""A study's grid: every recipe that is attacked, followed by every attack."""

import functools
from pathlib import Path

import pytest

from bulwark.config import loading, overlays
from bulwark.errors import ConfigurationError

CONFIG = Path(__file__).parents[3] / "config"
TABLE = """
tables:
  grid:
    title: A grid
    study: grid
    rows: [{rows}]
    columns: [{{benchmark: sep, metric: utility, label: Utility}}]"""


@functools.cache
def loaded(recipes="[base, vanilla, ise]", grid="attacks: [vanilla+aside, tried.*]", trials="{tried: 2}", rows=""):
    shown = ", tables: [grid]" if rows else ""
    text = f"""
name: mine
run: [grid]
steps:
  tried: {{like: sft, settings: {{training: {{micro_batch_size: 8}}}}, space: {{training.batch_size: [8, 16]}}}}
studies:
  grid:
    {{models: [miniature], recipes: {recipes}, {grid}, trials: {trials}, seeds: [0], benchmarks: [sep]{shown}}}
{TABLE.format(rows=rows) if rows else ""}"""
    files = overlays.read([CONFIG / "miniature.yaml"], CONFIG).files
    return loading.load(overlays.Configuration((*files, overlays.text(text))), CONFIG)


def test_every_recipe_is_followed_by_every_attack():
    grid = loaded().studies["grid"]
    assert grid.every_recipe == (
        "base", "vanilla", "ise",
        "vanilla+aside", "vanilla+vanilla+aside", "ise+vanilla+aside",
        "tried.0", "tried.1", "vanilla+tried.0", "vanilla+tried.1", "ise+tried.0", "ise+tried.1",
    )  # fmt: skip


def test_only_what_is_attacked_is_followed_by_attacks():
    grid = loaded(grid="attacks: [aside], attacked: [ise, base]", trials="{}").studies["grid"]
    assert grid.every_recipe == ("base", "vanilla", "ise", "ise+aside", "aside")


def test_a_grid_of_nothing_is_the_recipes():
    grid = loaded(grid="attacks: []", trials="{}").studies["grid"]
    assert grid.every_recipe == grid.recipes == ("base", "vanilla", "ise")


def test_the_grid_is_measured_and_shown():
    known = loaded(rows="vanilla+tried.1")
    assert {cell[1] for cell in known.cells("grid")} == set(known.studies["grid"].every_recipe)


REFUSED = [
    ({"grid": "attacks: [asied]", "trials": "{}"}, ("overlay.yaml:8, studies.grid.attacks.0", 'Did you mean "aside"?')),
    ({"grid": "attacks: [aside, aside]", "trials": "{}"}, ("studies.grid.attacks.1", "stands twice")),
    ({"grid": "attacks: [base]", "trials": "{}"}, ("studies.grid.attacks.0", '"base" is no attack')),
    (
        {"grid": "attacks: [vanilla]", "trials": "{}"},
        ("studies.grid.attacks.0", 'makes "vanilla", which the study has'),
    ),
    ({"grid": "attacks: [tried.*, tried.1]"}, ("studies.grid.attacks.1", 'makes "tried.1", which the study has')),
    ({"grid": "attacks: [tried.*]", "trials": "{}"}, ("studies.grid.attacks.0", "trials: {tried: 16}")),
    ({"grid": "attacks: [heretic.0]", "trials": "{}"}, ("studies.grid.attacks.0", '"heretic", which has no space')),
    (
        {"grid": "attacks: [aside], attacked: [vanila]", "trials": "{}"},
        ("studies.grid.attacked.0", 'Did you mean "vanilla"?'),
    ),
    ({"grid": "attacks: [aside], attacked: [ise, ise]", "trials": "{}"}, ("studies.grid.attacked.1", "stands twice")),
    ({"grid": "attacked: [ise]", "trials": "{}"}, ("studies.grid.attacked.0", "has no attacks")),
    ({"rows": "vanilla+tried.9"}, ('the recipe "vanilla+tried.9"', "its attacks (vanilla+aside, tried.*) do not make")),
]


@pytest.mark.parametrize(("changes", "parts"), REFUSED)
def test_a_wrong_grid_is_refused_with_its_line(changes, parts):
    with pytest.raises(ConfigurationError) as refused:
        loaded(**changes)
    for part in parts:
        assert part in str(refused.value)
