"""Closed settings and their error messages."""

import pytest

from bulwark.errors import ConfigurationError
from bulwark.settings import Closed, merged, read_yaml, validated


class Inner(Closed):
    learning_rate: float
    betas: tuple[float, float] = (0.9, 0.999)


class Outer(Closed):
    name: str = ""
    inner: Inner


def problem(data) -> str:
    with pytest.raises(ConfigurationError) as caught:
        validated(Outer, data, "config/steps/x.yaml")
    return str(caught.value)


def test_lists_become_tuples_and_whole_numbers_may_stand_for_floats():
    assert validated(Outer, {"inner": {"learning_rate": 1, "betas": [0.8, 0.9]}}, "x").inner.betas == (0.8, 0.9)


def test_an_unknown_key_is_named_with_its_path_and_the_nearest_one():
    message = problem({"inner": {"learning_rate": 0.1, "beta": [0.8, 0.9]}})
    assert message.startswith("config/steps/x.yaml: ")
    assert '"inner.beta"' in message
    assert '"betas"' in message


@pytest.mark.parametrize(
    ("text", "advice"), [("1e-5", "1.0e-5"), ("2E3", "2.0e+3"), ("1.5e4", "1.5e+4"), ("3.e-4", "3.0e-4")]
)
def test_a_number_that_yaml_reads_as_text_is_explained(text, advice):
    message = problem({"inner": {"learning_rate": text}})
    assert '"inner.learning_rate"' in message
    assert f"write {advice}" in message


def test_missing_and_wrongly_typed_keys_are_named():
    assert 'the key "inner" is missing' in problem({})
    assert '"name"' in problem({"name": 3, "inner": {"learning_rate": 0.1}})


def test_merging_replaces_lists_and_merges_maps():
    assert merged({"a": [1], "m": {"x": 1, "y": 2}}, {"a": [2], "m": {"y": 3}}) == {"a": [2], "m": {"x": 1, "y": 3}}


def test_a_key_written_twice_is_an_error(tmp_path):
    (tmp_path / "twice.yaml").write_text("a: 1\nb: 2\na: 3\n")
    with pytest.raises(ConfigurationError, match='"a" stands twice'):
        read_yaml(tmp_path / "twice.yaml")


def test_broken_yaml_names_the_file(tmp_path):
    (tmp_path / "broken.yaml").write_text("a: [1\n")
    with pytest.raises(ConfigurationError, match=r"broken\.yaml"):
        read_yaml(tmp_path / "broken.yaml")
