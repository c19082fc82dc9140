"""The files of a configuration: config/config.yaml and what is laid over it."""

from __future__ import annotations

from pathlib import Path

import pytest

from bulwark.config import loading, overlays
from bulwark.errors import ConfigurationError

CONFIG = Path(__file__).parents[3] / "config"


def read(folder, *texts, options=None):
    """The configuration of these overlays, in files one.yaml, two.yaml … of a folder."""
    paths = []
    for number, text in zip(("one", "two", "three"), texts, strict=False):
        paths.append(folder / f"{number}.yaml")
        paths[-1].write_text(text, encoding="utf-8")
    return overlays.read(paths, CONFIG, options)


def refused(folder, *texts, options=None) -> str:
    with pytest.raises(ConfigurationError) as error:
        loading.load(read(folder, *texts, options=options), CONFIG)
    return str(error.value)


# --- the name ---


def test_a_configuration_is_called_as_its_last_file_says(tmp_path):
    assert loading.load(read(tmp_path), CONFIG).name == "papers"
    assert loading.load(overlays.read([CONFIG / "miniature.yaml"], CONFIG), CONFIG).name == "miniature"
    assert loading.load(overlays.read([CONFIG / "miniature.yaml", CONFIG / "demo.yaml"], CONFIG), CONFIG).name == "demo"
    assert read(tmp_path, "studies: {}", "name: mine").name == "mine"
    assert read(tmp_path, "name: mine", "name: mine").name == "mine", "a second file may keep the name"


def test_without_a_name_it_is_refused_with_what_to_write(tmp_path):
    message = refused(tmp_path, "studies: {}")
    assert "one.yaml: the configuration has no name" in message
    assert "`name: one`" in message
    message = refused(tmp_path, "name: mine", "studies: {}")
    assert "two.yaml: the configuration has no name" in message


@pytest.mark.parametrize("name", ["papers", "miniature", "demo"])
def test_the_name_of_a_configuration_of_ours_is_taken(tmp_path, name):
    assert f'one.yaml: name: "{name}" is the name of' in refused(tmp_path, f"name: {name}")


@pytest.mark.parametrize("name", ["a b", "a/b", "..", "'.'", "''", "-x", "é", "'x\ty'", "x" * 101, "3", "yes", "[a]"])
def test_a_name_that_cannot_be_part_of_a_path_is_refused(tmp_path, name):
    message = refused(tmp_path, f"name: {name}")
    assert "one.yaml: name: " in message
    assert "Write" in message


def test_only_known_options_are_taken(tmp_path):
    assert read(tmp_path, "name: mine", options={"replace": True}).options == {"replace": True}
    assert 'Did you mean "replace"?' in refused(tmp_path, "name: mine", options={"replaec": True})
