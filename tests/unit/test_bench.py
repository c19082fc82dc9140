"""The measurements of bench/ are run by hand: what their code names has to be there when somebody does."""

from __future__ import annotations

import importlib

import pytest

from bench.__main__ import NAMES
from bulwark.abliteration.settings import AttackSettings
from bulwark.settings import validated


@pytest.mark.parametrize("name", NAMES)
def test_every_measurement_can_be_imported_and_says_what_it_measures(name):
    module = importlib.import_module(f"bench.{name}")
    assert callable(module.run)
    assert module.__doc__


def test_the_published_search_is_compared_with_settings_that_an_attack_takes():
    from bench.search import SETTINGS, SYSTEM

    assert validated(AttackSettings, SETTINGS, "bench").prompts.system_prompt == SYSTEM
