"""How a model is asked where its refusals are measured or attacked: said once, of the model."""

from __future__ import annotations

from pathlib import Path

import pytest

from bulwark.config import loading, overlays
from bulwark.errors import ConfigurationError

CONFIG = Path(__file__).parents[3] / "config"
THINKING = """
name: mine
models:
  mine:
    source: {path: my-model}
    template: chat
    system_prompt: Answer briefly.
    response_prefix: "<think></think>"
    resources: {train: {hours: 0.1, mem_gb: 4}, generate: {hours: 0.1, mem_gb: 4}}
"""


def catalogue(folder, text=THINKING):
    (folder / "mine.yaml").write_text(text, encoding="utf-8")
    return loading.load(overlays.read([folder / "mine.yaml"], CONFIG), CONFIG)


@pytest.mark.parametrize(
    "step", ["heretic", "iconoclast", "refusal_direction", "gradient_edit", "som_directions", "refusal_direction_later"]
)
def test_attacks_on_refusals_ask_a_model_as_it_says(tmp_path, step):
    prompts = catalogue(tmp_path).step("mine", step).settings.prompts
    assert (prompts.system_prompt, prompts.response_prefix) == ("Answer briefly.", "<think></think>")


@pytest.mark.parametrize("benchmark", ["refusal", "refusal_probe", "strongreject_rubric"])
def test_benchmarks_of_refusals_ask_a_model_as_it_says(tmp_path, benchmark):
    settings = catalogue(tmp_path).benchmark("mine", benchmark).settings
    assert (settings.system_prompt, settings.response_prefix) == ("Answer briefly.", "<think></think>")


def test_models_that_an_attack_does_not_mention_are_each_asked_in_their_own_way(tmp_path):
    """What is the same on both is resolved once, so that one must not be given the other's."""
    both = catalogue(tmp_path)
    said = [both.step(model, "heretic").settings.prompts.system_prompt for model in ("mine", "gemma-2-2b-it", "mine")]
    assert said == ["Answer briefly.", "You are a helpful assistant.", "Answer briefly."]
    assert both.step(None, "heretic").settings.prompts.system_prompt is None


def test_trials_ask_as_their_step_does(tmp_path):
    space = """
steps: {heretic: {space: {objectives.kl_scale: [0.5, 1.0]}}}
"""
    trial = catalogue(tmp_path, THINKING + space).step("mine", "heretic.1").settings
    assert trial.prompts.system_prompt == "Answer briefly."


@pytest.mark.parametrize(
    ("said", "path"),
    [
        ("steps: {heretic: {settings: {prompts: {system_prompt: Be brief.}}}}", "settings.prompts.system_prompt"),
        ("steps: {heretic: {models: {mine: {settings: {prompts: {response_prefix: a}}}}}}", "prompts.response_prefix"),
        ("benchmarks: {refusal: {settings: {system_prompt: null}}}", "settings.system_prompt"),
    ],
)
def test_nothing_but_the_model_may_say_it(tmp_path, said, path):
    with pytest.raises(ConfigurationError, match="belongs to the model") as error:
        catalogue(tmp_path, f"{THINKING}{said}\n")
    assert "mine.yaml:10" in str(error.value)
    assert path in str(error.value)
