"""The validation loss of a training as a metric: of the weights that were saved, and of a choice all of them."""

from pathlib import Path

import pytest

from bulwark import analyses
from bulwark.errors import RecordError
from bulwark.steps import module_of

REPORT = {"validation": [[10, 0.5], [20, 0.25], [30, 0.75]], "weights_of_step": 20}


def analysed(**manifest):
    module = analyses.module_of("validation")
    return module.analyse(manifest, Path("a"), module.Settings())


def test_the_loss_is_of_the_weights_that_were_saved():
    made = analysed(training=REPORT)
    assert (dict(made.values), made.rows, made.reported) == ({"validation_loss": (0.25, 1)}, [], {})
    assert analysed(training=REPORT | {"weights_of_step": 30}).values["validation_loss"] == (0.75, 1)


def test_of_a_choice_every_trial_is_a_row():
    chosen = {"trial": "a.1", "losses": {"a.0": 0.5, "a.1": 0.25}, "left_out": {"a.2": "it diverged."}}
    made = analysed(training=REPORT, chosen=chosen)
    assert dict(made.values) == {"validation_loss": (0.25, 1), "trials": (3, 1)}
    assert made.rows == [
        {"trial": "a.0", "loss": 0.5},
        {"trial": "a.1", "loss": 0.25},
        {"trial": "a.2", "loss": None, "left_out": "it diverged."},
    ]
    assert made.reported == {"chosen": "a.1"}


@pytest.mark.parametrize("manifest", [{}, {"training": {"validation": [], "weights_of_step": 20}}])
def test_without_one_it_says_so(manifest):
    with pytest.raises(RecordError, match=r"a/checkpoint\.json: tells of no validation loss"):
        analysed(**manifest)


def test_it_applies_to_trainings_with_a_split_for_validation():
    vanilla = module_of("vanilla").Settings.model_construct(data="x")
    assert analyses.applies("validation", vanilla)
    assert not analyses.applies("validation", module_of("prune").Settings(fraction=0.5))
    assert not analyses.applies("validation", None)
