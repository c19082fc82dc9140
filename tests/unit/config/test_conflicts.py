"""Settings that exclude or bound one another and stand in different files: the message names the place of each."""

from __future__ import annotations

from pathlib import Path

import pytest

from bulwark.config import loading, overlays
from bulwark.errors import ConfigurationError

CONFIG = Path(__file__).parents[3] / "config"
MINE = """
name: mine
models:
  mine:
    source: {path: my-model}
    template: chat
    resources: {train: {hours: 0.1, mem_gb: 4}, generate: {hours: 0.1, mem_gb: 4}}
"""


def refused(folder, text) -> str:
    """What is said of an overlay one.yaml."""
    (folder / "one.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigurationError) as error:
        loading.load(overlays.read([folder / "one.yaml"], CONFIG), CONFIG)
    return str(error.value)


def line_of(file, beginning, number=1):
    """ "file:line" of the number-th line of a file in config/ that begins so."""
    lines = (CONFIG / file).read_text().splitlines()
    return f"config/{file}:{[n for n, line in enumerate(lines, 1) if line.strip().startswith(beginning)][number - 1]}"


@pytest.mark.parametrize(
    ("model", "text", "places"),
    [
        (
            "mine",
            "steps: {vanilla: {settings: {training: {\n  max_steps: 40}}}}",
            [f" epochs {line_of('steps/vanilla.yaml', 'epochs:')}, max_steps ", "one.yaml:10."],
        ),
        (
            "miniature",
            "steps: {vanilla: {models: {miniature: {settings: {training: {max_steps: 40}}}}}}",
            [f" epochs {line_of('steps/vanilla.yaml', 'epochs:', 2)}, max_steps ", "one.yaml:9."],
        ),
        (
            "mine",
            "steps: {vanilla: {settings: {training: {micro_batch_size: 7}}}}",
            [f" batch_size {line_of('steps/vanilla.yaml', 'batch_size:')}, micro_batch_size ", "one.yaml:9."],
        ),
        (
            "mine",
            "datasets: {alpaca_cleaned: {source: {path: mine.json}}}",
            [f" hub {line_of('datasets/alpaca_cleaned.yaml', 'hub:')}, path ", "one.yaml:9."],
        ),
    ],
)
def test_what_does_not_fit_together_is_told_with_the_place_of_each(tmp_path, model, text, places):
    """An overlay sets one of two keys that exclude each other; the other stands in the entity's own file."""
    study = f"studies: {{aside: {{models: [{model}], recipes: [vanilla], tables: [], figures: [], claims: []}}}}\n"
    message = refused(tmp_path, MINE + study + text + "\nrun: [aside]\n")
    for place in places:
        assert place in message, message


def test_a_conflict_within_one_line_names_it_once(tmp_path):
    message = refused(tmp_path, "name: mine\ndatasets: {own: {kind: sep, source: {hub: a, path: b}, splits: {a: 1.0}}}")
    assert "here: hub, path" in message
    assert message.count("one.yaml:2") == 1
