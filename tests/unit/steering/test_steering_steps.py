"""Settings of the steps sft, steer, pis and caft, and their variants in config/steps."""

from __future__ import annotations

from pathlib import Path

import pytest

from bulwark.config import loading
from bulwark.config.catalogue import Catalogue
from bulwark.errors import ConfigurationError
from bulwark.settings import merged, read_yaml, validated
from bulwark.steps import caft, pis, sft, steer

ROOT = Path(__file__).parents[3]
TRAINING = {"epochs": 1.0, "batch_size": 2, "micro_batch_size": 1, "learning_rate": 1e-3}
COMMON = {"data": "x", "training": TRAINING, "vectors": {"traits": ["evil"], "layers": [2]}}
SHORT = {**TRAINING, "epochs": None, "max_steps": 2}
TWO = {"traits": ["evil"], "layers": [1, 2]}
RISE = {"shape": "rise", "onset": 3}


@pytest.fixture(scope="module")
def catalogue() -> Catalogue:
    config = merged(read_yaml(ROOT / "config/config.yaml"), read_yaml(ROOT / "config/miniature.yaml"))
    return loading.load(config, ROOT / "config")


@pytest.mark.parametrize(
    ("module", "changes", "complaint"),
    [
        (steer, {"schedule": RISE}, "the step of kind pis"),
        (steer, {"mean_of": RISE, "schedule": {"withdraw_at": 3}}, "mean_of makes the strength constant"),
        (steer, {"increments": True}, "between several layers"),
        (steer, {"embedded": True, "intervention": {"adaptive": True}}, "leave adaptive"),
        (steer, {"embedded": True, "intervention": {"tokens": "all"}}, "leave adaptive"),
        (steer, {"embedded": True, "schedule": {"withdraw_at": 3}}, "is there to stay"),
        (steer, {"embedded": True, "schedule": {"shape": "decline"}}, "is there to stay"),
        (steer, {"training": TRAINING | {"loss_on": "all"}}, "loss_on must be response"),
        (steer, {"training": TRAINING | {"packing": True}}, "packing must be false"),
        (steer, {"vectors": {"traits": ["evil"], "layers": [0]}}, "layers count from 1"),
        (steer, {"vectors": {"traits": ["evil"], "layers": [2, 2]}}, "names one of them twice"),
        (pis, {}, '"schedule" is missing'),
        (pis, {"schedule": {"withdraw_at": 3}}, "the strength of PIS rises"),
        (pis, {"schedule": RISE, "training": TRAINING | {"packing": True}}, "packing must be false"),
        (caft, {"training": TRAINING | {"loss_on": "all"}}, "loss_on must be response"),
        (caft, {"withdraw_at": 2, "training": TRAINING | {"keep_best": True}}, "make training.keep_best false"),
        (pis, {"schedule": RISE, "training": TRAINING | {"keep_best": True}}, "the strength changes on the way"),
        (steer, {"embedded": True, "training": TRAINING | {"keep_best": True}}, "tokens of all steps"),
        (steer, {"increments": True, "vectors": TWO, "intervention": {"adaptive": True}}, "leave one of them out"),
        (pis, {"schedule": RISE, "training": SHORT}, r"max_steps is 2; schedule: the onset 3 lies behind"),
        (steer, {"schedule": {"withdraw_at": 5}, "training": SHORT}, "never be withdrawn"),
    ],
)
def test_contradictions_are_refused_before_any_job(module, changes, complaint):
    with pytest.raises(ConfigurationError, match=complaint):
        validated(module.Settings, COMMON | changes, "config/steps/x.yaml: settings")


def test_plain_fine_tuning_may_train_on_everything_and_names_the_vectors_of_its_analysis():
    plain = {"data": "x", "training": TRAINING | {"loss_on": "all", "packing": True}}
    assert list(validated(sft.Settings, plain, "x").inputs()) == ["train", "validation"]
    with pytest.raises(ConfigurationError, match=r"analysis\.vectors is missing"):
        validated(sft.Settings, plain | {"analysis": {"every": 10}}, "x")
    looked_at = plain | {"analysis": {"vectors": COMMON["vectors"]}}
    assert "vector_evil" in validated(sft.Settings, looked_at, "x").inputs()


def test_a_step_asks_for_its_vectors_and_for_where_the_onset_is_found():
    detected = {"shape": "rise", "onset": {"detected_from": "steer"}}
    for module, changes in ((pis, {"schedule": detected}), (steer, {"mean_of": detected})):
        inputs = validated(module.Settings, COMMON | changes, "x").inputs()
        assert inputs["vector_evil"] == "vectors/{model}/{parent}/seed{seed}/evil.safetensors"
        assert inputs["onset_from"] == "checkpoints/{model}/{prefix}steer/seed{seed}/checkpoint.json"


@pytest.mark.parametrize("model", ["miniature", "qwen2.5-32b-instruct", "qwen2.5-7b-instruct", "gemma-3-12b-it"])
def test_all_variants_train_alike(catalogue, model):
    """Runs compare only if nothing but the defence differs. (Fine-tuning on refusals is of other studies.)"""
    kinds, others = ("sft", "steer", "pis", "caft"), ("extended_refusal", "plain_refusal", "refusal_recovery")
    variants = [name for name, step in catalogue.steps.items() if step.kind in kinds and name not in others]
    assert len(variants) > 25
    training = {name: catalogue.step(model, name).settings.training.deciding() for name in variants}
    length = dict.fromkeys(("epochs", "max_steps"))  # of the control on fewer rows, which takes as many steps
    training["sft_clean"] |= length
    assert all(training["sft"] | length == settings | length for settings in training.values())
    assert all(settings == training["sft"] for name, settings in training.items() if name != "sft_clean")
    data = {name: catalogue.step(model, name).settings.data for name in variants if name != "sft_clean"}
    assert len(set(data.values())) == 1


@pytest.mark.parametrize(
    ("other", "complaint"),
    [
        ("sft", "does not steer at constant strength"),
        ("pis", "does not steer at constant strength"),
        ("early", "does not steer at constant strength"),
        ("caft", "does not steer at constant strength"),
        ("pis_detected", "is the step itself"),
        ("steer_evil", "has the vectors"),
    ],
)
def test_an_onset_can_be_found_only_where_the_same_vectors_act_at_constant_strength(other, complaint):
    whole = read_yaml(ROOT / "config/config.yaml")
    changed = {"pis_detected": {"settings": {"schedule": {"onset": {"detected_from": other}}}}}
    with pytest.raises(ConfigurationError, match=complaint):
        loading.load({**whole, "steps": changed}, ROOT / "config")


def test_a_mistake_is_told_of_the_file_that_it_stands_in():
    """Not of the first variant that is like it."""
    whole = read_yaml(ROOT / "config/config.yaml")
    with pytest.raises(ConfigurationError, match=r"^the configuration, steps\.steer\.settings"):
        loading.load({**whole, "steps": {"steer": {"settings": {"vectors": {"layers": [0]}}}}}, ROOT / "config")


def test_the_mean_is_that_of_pis(catalogue):
    for model in (None, "miniature"):
        mean = catalogue.step(model, "steer_mean").settings
        rising = catalogue.step(model, "pis").settings
        assert mean.mean_of == rising.schedule
        assert mean.intervention == rising.intervention


def test_the_fused_variants_differ_in_what_they_say(catalogue):
    for model in (None, "miniature"):
        whole, average = (catalogue.step(model, name).settings for name in ("steer_fused", "steer_average"))
        assert (whole.vectors.fusion, average.vectors.fusion) == ("norm_aligned", "average")
        assert whole.vectors.traits == average.vectors.traits
        assert len(whole.vectors.traits) == 3


def test_a_wrong_sibling_is_named(catalogue):
    config = {"steps": {"pis_detected": {"settings": {"schedule": {"onset": {"detected_from": "ster"}}}}}}
    with pytest.raises(ConfigurationError, match=r'unknown step "ster".*Did you mean "steer"'):
        loading.load(config, ROOT / "config")
