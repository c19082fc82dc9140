"""What config/ says of steering: recipes that are compared differ only in what the comparison is about."""

from pathlib import Path

import pytest

from bulwark.config import loading
from bulwark.settings import read_yaml

CONFIG = Path(__file__).parents[3] / "config"
MODELS = ["qwen2.5-32b-instruct", "qwen2.5-7b-instruct", "gemma-3-12b-it", "miniature"]


@pytest.fixture(scope="module")
def steps():
    known = loading.load(read_yaml(CONFIG / "config.yaml"), CONFIG)
    return lambda model, name: known.step(model, name).settings


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", ["idp", "idp_gradient", "idp_gradient_svd", "idp_flat", "idp_flat_gradient"])
def test_what_preserves_is_steered_as_long_as_what_does_not(model, name, steps):
    assert steps(model, name).preservation.boundary == steps(model, "early").schedule.withdraw_at


@pytest.mark.parametrize("model", MODELS)
def test_what_continues_is_steered_as_long_as_what_does_not(model, steps):
    assert steps(model, "idp_continuation").continuation.boundary == steps(model, "early").schedule.withdraw_at


@pytest.mark.parametrize("model", MODELS)
def test_the_static_control_has_the_mean_strength_of_the_rise(model, steps):
    pis, mean = steps(model, "pis"), steps(model, "steer_mean")
    assert mean.intervention == pis.intervention
    for total in (114, 155):
        assert mean.mean_of.over(total, 1.0).mean_alpha() == pis.schedule.over(total, 1.0).mean_alpha()


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", ["sft_clean", "steer", "pis", "early", "caft", "delta_loss", "gradient_probe", "idp"])
def test_all_train_alike(model, name, steps):
    """But for how a length is written: the clean rows are fewer, the steps as many (defaults/test_full_scale.py)."""
    length = dict.fromkeys(("epochs", "max_steps")) if name == "sft_clean" else {}
    assert steps(model, name).training.deciding() | length == steps(model, "sft").training.deciding() | length
