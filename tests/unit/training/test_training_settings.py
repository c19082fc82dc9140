"""Settings of training: what contradicts itself is refused; steps and warm-up are counted as documented."""

from __future__ import annotations

import pytest

from bulwark.errors import ConfigurationError
from bulwark.settings import validated
from bulwark.training.settings import TrainingSettings

PLAIN = {"epochs": 2, "batch_size": 256, "micro_batch_size": 4, "learning_rate": 2e-5}


def of(**changes) -> TrainingSettings:
    return validated(TrainingSettings, PLAIN | changes, "settings")


def test_the_steps_of_the_published_run():
    assert of().steps_per_epoch(46_581) == 182
    assert of().total_steps(46_581) == 364
    assert of().accumulation(ranks=8) == 8


def test_a_fraction_of_an_epoch_and_a_number_of_steps():
    assert of(epochs=0.5).total_steps(512) == 1
    assert of(epochs=None, max_steps=7).total_steps(46_581) == 7


def test_warm_up_in_steps_or_as_a_share():
    assert of(warmup_ratio=0.05).warmup(364) == 19
    assert of(warmup_ratio=0.05, warmup_steps=32).warmup(364) == 32
    assert of().warmup(364) == 0


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"max_steps": 3}, "either epochs or max_steps"),
        ({"epochs": None}, "either epochs or max_steps"),
        ({"optimizer": "schedulefree_adamw"}, 'schedule: "constant"'),
        ({"evaluate_every": 0}, "evaluate_every"),
        ({"evaluate_every": "batch"}, "evaluate_every"),
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": 254}, "no multiple of micro_batch_size 4"),
        ({"learning_rate": "2e-5"}, "write 2.0e-5"),
        ({"warmup_ration": 0.1}, "warmup_ratio"),
        ({"lora": {"rank": 8, "target": ["q_proj"]}}, "lora.target"),
    ],
)
def test_what_is_refused(changes, told):
    with pytest.raises(ConfigurationError, match=told):
        of(**changes)


def test_adapters_on_named_modules_or_on_all_linear_ones():
    assert of(lora={"target_modules": ["q_proj", "v_proj"]}).lora.target_modules == ("q_proj", "v_proj")
    assert of(lora={}).lora.target_modules == "all-linear"
