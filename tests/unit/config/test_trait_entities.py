"""What the catalogue refuses of traits, and of what asks for their vectors."""

from pathlib import Path

import pytest

from bulwark.config import loading
from bulwark.errors import ConfigurationError

CONFIG = Path(__file__).parents[3] / "config"


@pytest.mark.parametrize(
    ("overlay", "parts"),
    [
        ({"traits": {"rude": {"dataset": "miniature_contrast_rud"}}}, ["traits/rude.yaml: dataset", "contrast_rude"]),
        ({"traits": {"rude": {"dataset": "miniature_sep", "split": "test"}}}, ['the kind "sep"', '"contrast"']),
        ({"traits": {"rude": {"split": "tset"}}}, ["config/traits/rude.yaml: split", '"tset"', '"test"']),
        ({"traits": {"rude": {"judge": {"kind": "orcle"}}}}, ["config/traits/rude.yaml: judge", '"oracle"']),
        ({"traits": {"rude": {"files": {"minature": "x.pt"}}}}, ["config/traits/rude.yaml: files", '"miniature"']),
        ({"traits": {"rude": {"filter": {"treshold": 1.0}}}}, ['"filter.treshold"', '"threshold"']),
        ({"traits": {"mine": {"description": "nothing"}}}, ["dataset of contrasts, or published files"]),
        ({"datasets": {"miniature_sep": {"format": "artefact"}}}, ['the format "artefact"']),
        ({"steps": {"steer": {"settings": {"vectors": {"traits": ["evli"]}}}}}, ["config/steps/", '"evil"']),
    ],
)
def test_a_mistake_is_named(overlay, parts):
    with pytest.raises(ConfigurationError) as raised:
        loading.load(overlay, CONFIG)
    for part in parts:
        assert part in str(raised.value)


def test_a_trait_may_do_without_a_judge():
    found = loading.load({"traits": {"rude": {"judge": None}}}, CONFIG)
    assert found.judge_of_trait("rude") is None
    assert found.judge_of_trait("evil").scale == 100
