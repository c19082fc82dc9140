"""The recipe algebra."""

import pytest

from bulwark.config import recipes
from bulwark.errors import ConfigurationError


@pytest.mark.parametrize(
    ("recipe", "steps", "parent"),
    [
        ("aside", ("aside",), "base"),
        ("random_map+tar", ("random_map", "tar"), "random_map"),
        ("sft@40", ("sft@40",), "base"),
        ("sft@40+heretic", ("sft@40", "heretic"), "sft@40"),
        ("random_map+tar+relearn_lora", ("random_map", "tar", "relearn_lora"), "random_map+tar"),
    ],
)
def test_a_recipe_is_its_parent_plus_its_last_step(recipe, steps, parent):
    assert recipes.steps_of(recipe) == steps
    assert recipes.parent_of(recipe) == parent
    assert recipes.last_step(recipe) == steps[-1]


def test_base_has_no_steps_and_no_parent():
    assert recipes.steps_of("base") == ()
    with pytest.raises(ConfigurationError, match="no parent"):
        recipes.parent_of("base")


BAD_SNAPSHOTS = ["aside@", "aside@0", "aside@07", "aside@x", "aside@-1", "@40", "base@40", "aside@4@5", "aside@4.0"]


@pytest.mark.parametrize(
    "recipe", ["", "+aside", "aside+", "aside++tar", "base+aside", "aside+base", "a side", *BAD_SNAPSHOTS]
)
def test_malformed_recipes_are_refused(recipe):
    with pytest.raises(ConfigurationError, match="not the name of a step"):
        recipes.steps_of(recipe)


def test_unknown_steps_are_named_with_their_place_and_the_nearest_name():
    with pytest.raises(ConfigurationError) as caught:
        recipes.check("vanilla+asdie", ["vanilla", "aside", "ise"], "studies.aside.recipes")
    for part in ("studies.aside.recipes", '"asdie"', '"aside"'):
        assert part in str(caught.value)


def test_a_snapshot_is_of_the_training_to_its_end():
    assert recipes.snapshot_of("sft@40") == ("sft", 40)
    assert recipes.snapshot_of("sft") == ("sft", None)
    assert recipes.to_its_end("vanilla+sft@40") == "vanilla+sft"
    recipes.check("vanilla+sft@40", ["vanilla", "sft"], "here")
    with pytest.raises(ConfigurationError, match=r'unknown step "stf"\. Did you mean "sft"'):
        recipes.check("vanilla+stf@40", ["vanilla", "sft"], "here")
