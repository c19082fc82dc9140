"""Nothing in config/ or in a settings class has a value that no row names."""

from collections import Counter

from defaults import (
    test_abliteration,
    test_abliteration_settings,
    test_adversarial,
    test_alpacaeval,
    test_aside,
    test_bipia_rules,
    test_costs,
    test_evaluation,
    test_injections,
    test_interpretability,
    test_red_team,
    test_steering,
    test_steering_settings,
    test_stronger_attacks,
    test_tamper_evaluation,
    test_tampering,
    test_training,
    test_unlearning,
)
from defaults.reader import defaulted, named, stated

TABLES = (
    test_aside,
    test_bipia_rules,
    test_training,
    test_steering,
    test_steering_settings,
    test_abliteration,
    test_abliteration_settings,
    test_evaluation,
    test_injections,
    test_interpretability,
    test_unlearning,
    test_tampering,
    test_red_team,
    test_adversarial,
    test_tamper_evaluation,
    test_alpacaeval,
    test_stronger_attacks,
    test_costs,
)
NAMED = Counter(place for table in TABLES for place in named(table.ROWS))


def test_every_value_of_the_configuration_has_a_row():
    assert sorted(stated() - NAMED.keys()) == []


def test_every_default_of_a_settings_class_has_a_row():
    assert sorted(defaulted() - NAMED.keys()) == []


def test_no_value_has_two_rows():
    assert [place for place, times in NAMED.items() if times > 1] == []
