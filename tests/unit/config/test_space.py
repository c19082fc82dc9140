"""A step's space and its trials: the points, what they become, what is refused and where."""

import functools
import math
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import qmc

from bulwark.config import checks, loading, overlays, plan, plan_reports, recipes
from bulwark.config.space import ranges, sobol
from bulwark.errors import ConfigurationError

CONFIG = Path(__file__).parents[3] / "config"
SPACE = """
      training.learning_rate: {low: 1.0e-5, high: 1.0e-3, log: true}
      training.batch_size: [8, 16, 32]
      training.epochs: {low: 0.5, high: 2.0}"""

PINNED = {
    "relearn.3": {"training.batch_size": 32, "training.learning_rate": 0.002653, "training.schedule": "cosine"},
    "relearn_lora.1": {
        **{"training.batch_size": 8, "training.learning_rate": 0.001902},
        **{"training.lora.rank": 64, "training.schedule": "cosine"},
    },
}


@functools.cache
def loaded(space=SPACE, recipes="[base, tried.*, vanilla+tried.*]", trials="{tried: 4}", more="", name="tried", top=""):
    text = f"""
name: mine
run: [tried]
steps:
  {name}:
    like: sft
    space: {space}
{more}
    settings: {{training: {{micro_batch_size: 8}}}}
studies:
  tried: {{models: [miniature], recipes: {recipes}, trials: {trials}, seeds: [0], benchmarks: [sep]}}
{top}"""
    files = overlays.read([CONFIG / "miniature.yaml"], CONFIG).files
    return loading.load(overlays.Configuration((*files, overlays.text(text))), CONFIG)


def refusal(**changes):
    with pytest.raises(ConfigurationError) as refused:
        loaded(**changes)
    return str(refused.value)


# --- points ---


def test_the_plain_sequence_is_scipys():
    theirs = qmc.Sobol(sobol.DIMENSIONS, scramble=False, bits=sobol.BITS).random(512)
    ours = [[sobol.unscrambled(n ^ (n >> 1), d) / 2**32 for d in range(sobol.DIMENSIONS)] for n in range(512)]
    assert np.array_equal(theirs, ours), "scipy takes the points in the order of the Gray code"


def test_scrambled_points_are_still_a_net():
    """Any 2^m points from a multiple of 2^m on hit every one of 2^m intervals of each coordinate exactly once."""
    seeds = [f"step/key{n}" for n in range(sobol.DIMENSIONS)]
    points = np.array([sobol.point(number, seeds) for number in range(64, 128)])
    for coordinate in points.T:
        assert sorted(np.floor(coordinate * 64).astype(int)) == list(range(64))
    in_two = {(math.floor(8 * a), math.floor(8 * b)) for a, b in points[:, :2]}
    assert len(in_two) == 64, "also of each box of the first two coordinates"
    assert ((points > 0) & (points < 1)).all()


def test_a_point_depends_on_the_step_and_the_key_alone():
    space = {"a": ranges.Range(low=0.0, high=1.0), "b": ranges.Range(low=0.0, high=1.0)}
    assert ranges.trial("x", 5, space) == ranges.trial("x", 5, dict(reversed(space.items())))
    assert ranges.trial("x", 5, space) != ranges.trial("y", 5, space)
    assert ranges.trial("x", 5, space) == {"a": 0.5072, "b": 0.645}, "pinned: other points are other results"


def test_ranges_are_drawn_evenly_and_reach_both_ends():
    seeds = ["s"]
    shares = [sobol.point(number, seeds)[0] for number in range(256)]
    whole = [ranges.Range(low=3, high=6).at(share) for share in shares]
    assert {value: whole.count(value) for value in set(whole)} == {3: 64, 4: 64, 5: 64, 6: 64}
    chosen = [ranges.Range(choices=["a", "b"]).at(share) for share in shares]
    assert chosen.count("a") == 128
    logarithmic = [ranges.Range(low=1e-6, high=1e-2, log=True).at(share) for share in shares]
    assert sum(value < 1e-4 for value in logarithmic) == 128
    assert min(logarithmic) >= 1e-6
    assert max(logarithmic) <= 1e-2
    assert all(float(f"{value:.4g}") == value for value in logarithmic)
    assert {ranges.Range(low=1, high=64, log=True).at(share) for share in (1e-9, 1 - 1e-9)} == {1, 64}


def test_values_are_laid_over_settings_by_key():
    settings = {"data": "x", "training": {"lora": None, "epochs": 1}}
    over = ranges.laid_over(settings, {"training.lora.rank": 4, "data": "y"})
    assert over == {"data": "y", "training": {"lora": {"rank": 4}, "epochs": 1}}
    assert settings["training"]["lora"] is None


# --- in a configuration ---


def test_a_trial_is_the_step_with_the_settings_of_its_point():
    known = loaded()
    trial, step = plan.step(known, "miniature", "vanilla+tried.2"), plan.step(known, "miniature", "tried")
    varied = plan.trial(known, "miniature", "vanilla+tried.2")
    assert varied == ranges.trial("tried", 2, known.steps["tried"].space_on(None))
    for key, value in varied.items():
        assert trial.settings["training"][key.removeprefix("training.")] == value
    same = {
        key for key in step.settings["training"] if step.settings["training"][key] == trial.settings["training"][key]
    }
    assert {f"training.{key}" for key in set(step.settings["training"]) - same} <= set(varied)
    assert (trial.code, trial.resources) == (step.code, step.resources)
    assert plan.trial(known, "miniature", "tried") == {}
    assert plan.step_inputs(known, "miniature", "vanilla+tried.2", "0")["parent"].endswith(
        "vanilla/seed0/checkpoint.json"
    )


def test_the_trials_of_attacks_vary_what_tamperbenchs_sweeps_do():
    """Rate, batch, steps, schedule, rank, template and mixture; in miniature, also the points are pinned."""
    known = loaded()
    varied = {
        step: {key.rpartition(".")[2] for key in known.steps[step].space_on(None)}
        for step in (
            "relearn",
            "relearn_lora",
            "relearn_mixture",
            "relearn_refusal_tuned",
            "relearn_refusal_tuned_lora",
        )
    }
    trained = {"learning_rate", "batch_size", "max_steps", "schedule"}
    assert varied == {
        "relearn": trained,
        "relearn_lora": trained | {"rank"},
        "relearn_mixture": trained | {"mixture"},
        "relearn_refusal_tuned": trained | {"mixture", "template"},
        "relearn_refusal_tuned_lora": trained | {"mixture", "template", "rank"},
    }
    assert plan.trial(known, "miniature", "relearn.3") == PINNED["relearn.3"]
    assert plan.trial(known, "miniature", "relearn_lora.1") == PINNED["relearn_lora.1"]
    assert {plan.step(known, "miniature", f"relearn_mixture.{n}").settings["template"] for n in range(4)} == {
        None,
        "plain",
    }


def test_more_trials_never_change_earlier_ones():
    few, many = loaded(), loaded(trials="{tried: 9}")
    assert few.studies["tried"].every_recipe == (
        "base", *(f"tried.{n}" for n in range(4)), *(f"vanilla+tried.{n}" for n in range(4)),
    )  # fmt: skip
    assert len(many.studies["tried"].every_recipe) == 19
    assert loaded(trials="{tried: 4, ise: null}").studies["tried"].every_recipe == few.studies["tried"].every_recipe
    for n in range(4):
        assert plan.step(few, "miniature", f"tried.{n}").settings == plan.step(many, "miniature", f"tried.{n}").settings
    assert {cell[1] for cell in few.cells("tried")} == set(few.studies["tried"].every_recipe)


def test_any_number_can_be_asked_for_also_of_no_study():
    known = loaded()
    assert plan.trial(known, "miniature", "tried.123456")["training.batch_size"] in (8, 16, 32)
    with pytest.raises(ConfigurationError, match="numbered from 0 to 4294967295"):
        plan.trial(known, "miniature", f"tried.{2**32}")
    with pytest.raises(ConfigurationError, match=r'unknown step "tried.07"\. Did you mean "tried"'):
        plan.trial(known, "miniature", "tried.07")


def test_a_trial_has_the_snapshots_of_its_training():
    known = loaded(
        more="    models: {miniature: {settings: {training: {snapshots: [3]}}}}", recipes="[tried.*@3+vanilla]"
    )
    assert known.studies["tried"].every_recipe == tuple(f"tried.{n}@3+vanilla" for n in range(4))
    assert plan.snapshot_source(known, "miniature", "tried.1@3", "0").endswith("/tried.1/seed0/checkpoint.json")
    with pytest.raises(ConfigurationError, match="keeps no snapshot after 4"):
        plan.snapshot_source(known, "miniature", "tried.1@4", "0")


def test_a_model_varies_less_or_other_values():
    own = "    models: {miniature: {space: {training.epochs: null, training.batch_size: [16, 32]}}}"
    known = loaded(more=own)
    assert set(plan.trial(known, "miniature", "tried.0")) == {"training.batch_size", "training.learning_rate"}
    assert {plan.trial(known, "miniature", f"tried.{n}")["training.batch_size"] for n in range(8)} == {16, 32}
    assert known.step("qwen2.5-7b", "tried.0").trial.keys() == {
        f"training.{k}" for k in ("batch_size", "epochs", "learning_rate")
    }


def test_data_sets_are_choices_too_and_are_known_as_inputs():
    known = loaded(space="{data: [miniature_instructions, miniature_trait_rude]}")
    asked = {plan.step_inputs(known, "miniature", f"tried.{n}", "0")["train"] for n in range(4)}
    assert asked == {f"results/data/{name}/train.jsonl" for name in ("miniature_instructions", "miniature_trait_rude")}
    assert checks.in_use(known).datasets >= {"miniature_instructions", "miniature_trait_rude"}
    assert asked <= set(plan_reports.records(known))


@pytest.mark.parametrize(
    ("space", "parts"),
    [
        (
            "{training.learning_rat: {low: 1.0e-5, high: 1.0e-3}}",
            ("overlay.yaml:7, steps.tried.space.training.learning_rat", 'unknown key', 'mean "learning_rate"'),
        ),
        ("{training.batch_size: {low: 0.5, high: 2.0}}", ("overlay.yaml:7", "batch_size", "valid integer")),
        ("{training.learning_rate: {low: -1.0, high: 1.0}}", ("overlay.yaml:7", "learning_rate", "-1.0")),
        ("{training.learning_rate: {low: 1.0, high: 0.5}}", ("overlay.yaml:7", "low is 1 and high 0.5")),
        ("{training.learning_rate: {low: 0.0, high: 0.5, log: true}}", ("overlay.yaml:7", "with log, low is above 0")),
        ("{training.learning_rate: {lo: 0.0, high: 0.5}}", ("overlay.yaml:7", 'learning_rate.lo"', 'mean "low"')),
        ("{training.learning_rate: 0.5}", ("overlay.yaml:7", "training.learning_rate")),
        ("{training.learning_rate: [0.5]}", ("overlay.yaml:7", "choices are two or more")),
        ("{training.lora: [null, {rank: 4}], training.lora.rank: [2, 4]}", ("one is inside of the other",)),
        ("{data: [miniature_instructions, miniature_instruction]}", ("overlay.yaml:7", '"miniature_instructions"')),
        ("{training.schedule: [cosine, cosin]}", ("overlay.yaml:7", "training.schedule", '"cosin"')),
        (
            "{training.batch_size: [8, 12], training.micro_batch_size: [4, 8]}",
            ("in a trial (training.batch_size 12, training.micro_batch_size 8)",),
        ),
        ("{training.epochs: [1.0, null]}", ("give either epochs or max_steps", "training.epochs null")),
    ],
)  # fmt: skip
def test_a_wrong_space_is_refused_with_its_line(space, parts):
    said = refusal(space=space)
    for part in parts:
        assert part in said, said


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"trials": "{}"}, ("studies.tried.recipes.1", 'stands for trials of "tried"', "trials: {tried: 16}")),
        ({"trials": "{tried: 0}"}, ("studies.tried", '"trials.tried"', "greater than or equal to 1")),
        ({"trials": "{tried: 4, ise: 2}"}, ("studies.tried.trials.ise", 'no recipe of the study has "ise.*"')),
        ({"trials": "{tride: 4}"}, ('no step "tride"', 'mean "tried"')),
        ({"recipes": "[tried.*, sft.2]"}, ("studies.tried.recipes.1", '"sft", which has no space')),
        ({"recipes": "[tried.*, sft.*]", "trials": "{tried: 1, sft: 1}"}, ('"sft", which has no space',)),
        ({"name": "tried.best", "recipes": "[base]", "trials": "{}"}, ("overlay.yaml:5", 'Write "tried_best"')),
        ({"recipes": "[tried.*, tride.3]"}, ('unknown step "tride"', 'mean "tried"')),
        ({"name": "tried.5", "recipes": "[base]", "trials": "{}"}, ("overlay.yaml:5", 'Write "tried_5"')),
    ],
)  # fmt: skip
def test_wrong_trials_are_refused_with_their_line(changes, parts):
    said = refusal(**changes)
    for part in parts:
        assert part in said, said


def test_trials_stand_where_recipes_do():
    assert recipes.expanded("a+b.*+c", {"b": 2}) == ["a+b.0+c", "a+b.1+c"]
    assert recipes.expanded("b.*+b.*@7", {"b": 2}) == ["b.0+b.0@7", "b.0+b.1@7", "b.1+b.0@7", "b.1+b.1@7"]
    assert recipes.trial_of("relearn.17") == ("relearn", 17)
    assert recipes.trial_of("relearn.1.7") == ("relearn.1", 7)
    assert recipes.trial_of("relearn") == ("relearn", None)
    with pytest.raises(ConfigurationError, match="not the name of a step"):
        recipes.steps_of("tar+relearn.*")


def test_what_is_shown_may_name_all_trials():
    column = "{benchmark: sep, metric: utility, label: U}"
    table = f"tables: {{tried: {{title: T, study: tried, rows: [base, vanilla+tried.*], columns: [{column}]}}}}"
    known = loaded(top=table)
    cells = plan_reports.table(known, "tried").cells
    assert [cell["recipe"] for cell in cells] == ["base", *(f"vanilla+tried.{n}" for n in range(4))]
    assert plan_reports.page(known).studies[0]["recipes"] == [
        "base",
        "tried.* (4 trials)",
        "vanilla+tried.* (4 trials)",
    ]
    wrong = table.replace("vanilla+tried", "ise+tried")
    with pytest.raises(ConfigurationError, match=r'needs the recipe "ise\+tried\.\*".*\(base, tried\.\*, vanilla'):
        plan_reports.table(loaded(top=wrong), "tried")


def test_a_plan_tells_each_trial_once():
    known = loaded()
    told = plan.trials_told(known, [("miniature", r) for r in ("tried.1", "vanilla+tried.1", "tried.0", "vanilla")])
    first, *lines = told.splitlines()
    assert first == "Trials and their settings:"
    assert [line.split(":")[0] for line in lines] == [
        "  miniature, tried.0 (1 to make)",
        "  miniature, tried.1 (2 to make)",
    ]
    assert "training.batch_size " in lines[0]
    assert plan.trials_told(known, [("miniature", "vanilla")]) == ""
