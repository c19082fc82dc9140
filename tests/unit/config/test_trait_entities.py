"""What the catalogue refuses of traits, and of what asks for their vectors."""

from pathlib import Path

import pytest

from bulwark.config import loading, plan_vectors
from bulwark.errors import ConfigurationError

CONFIG = Path(__file__).parents[3] / "config"


@pytest.mark.parametrize(
    ("overlay", "parts"),
    [
        ({"traits": {"rude": {"dataset": "miniature_contrast_rud"}}}, ["traits.rude.dataset", "contrast_rude"]),
        ({"traits": {"rude": {"split": "tset"}}}, ["traits.rude.split", '"tset"', '"test"']),
        ({"traits": {"rude": {"judge": {"kind": "orcle"}}}}, ["traits.rude.judge", '"oracle"']),
        ({"traits": {"rude": {"files": {"minature": "x.pt"}}}}, ["traits.rude.files", '"miniature"']),
        ({"traits": {"rude": {"filter": {"treshold": 1.0}}}}, ['"filter.treshold"', '"threshold"']),
        ({"traits": {"mine": {"description": "nothing"}}}, ["dataset of contrasts, or published files"]),
        ({"datasets": {"miniature_sep": {"format": "artefact"}}}, ['the format "artefact"']),
        ({"steps": {"steer": {"settings": {"vectors": {"traits": ["evli"]}}}}}, ["steps.steer.settings", '"evil"']),
    ],
)
def test_a_mistake_is_named(overlay, parts):
    with pytest.raises(ConfigurationError) as raised:
        loading.load(overlay, CONFIG)
    for part in parts:
        assert part in str(raised.value)


def test_a_trait_of_records_without_contrasts_is_refused_when_it_is_asked_for():
    known = loading.load({"traits": {"rude": {"dataset": "miniature_sep", "split": "test"}}}, CONFIG)
    with pytest.raises(ConfigurationError, match=r'traits\.rude\.dataset: .*the kind "sep".*"contrast"'):
        plan_vectors.contrast_records(known, "miniature", "base", "rude")


def test_a_trait_may_do_without_a_judge():
    found = loading.load({"traits": {"rude": {"judge": None}}}, CONFIG)
    assert found.judge_of_trait("rude") is None
    assert found.judge_of_trait("evil").scale == 100
