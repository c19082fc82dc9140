"""A list of an overlay stands in the place of the list below it, for messages too."""

from pathlib import Path

import pytest

from bulwark.config import loading, overlays
from bulwark.errors import ConfigurationError

CONFIG = Path(__file__).parents[3] / "config"
CASE = "{attacks: [c], utility: {benchmark: cloze, metric: accuracy}}"
OVERLAY = f"""name: mine
claims:
  tar_survives_its_worst_case:
    conditions:
      - better:
          {{benchmark: cloze, recipe: a, than: b, metric: accuracy, worst_case: {CASE}}}
"""


def test_what_a_list_of_an_overlay_lacks_is_told_of_the_overlay(tmp_path):
    """The claim's own file has the key, in a list that does not count any more."""
    own = tmp_path / "mine.yaml"
    own.write_text(OVERLAY, encoding="utf-8")
    with pytest.raises(ConfigurationError) as caught:
        loading.load(overlays.read([own], CONFIG), CONFIG)
    told = "mine.yaml:6, claims.tar_survives_its_worst_case"
    assert told in str(caught.value)
    assert 'the key "conditions.0.better.worst_case.harm" is missing' in str(caught.value)
