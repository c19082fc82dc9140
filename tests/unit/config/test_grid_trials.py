"""Grids: which trial has which values, ASIDE's 48 runs, and the best of trials as a part of recipes."""

import functools
from itertools import product
from pathlib import Path

import pytest

from bulwark.config import checks, loading, overlays, plan, plan_reports, recipes
from bulwark.config.sharing import shares
from bulwark.config.space import ranges
from bulwark.errors import ConfigurationError

CONFIG = Path(__file__).parents[3] / "config"
METHODS = ("aside", "vanilla", "ise")  # in the order of the authors' repository
# The runs that their repository names (spec of the paper, B.5), counted within each method.
KEPT = {
    "llama2-7b": (6, 3, 3),
    "llama2-13b": (15, 4, 4),
    "llama3.1-8b": (15, 11, 2),
    "qwen2.5-7b": (14, 2, 2),
    "mistral-7b-v0.3": (10, 0, 10),
}


@functools.cache
def papers():
    return loading.load(overlays.read([], CONFIG), CONFIG)


@functools.cache
def loaded(text, miniature=True):
    files = overlays.read([CONFIG / "miniature.yaml"] if miniature else [], CONFIG).files
    return loading.load(overlays.Configuration((*files, overlays.text(text))), CONFIG)


def study(recipes="[vanilla.best]", trials="{}", steps="{}", more=""):
    return f"""
name: mine
run: [mine]
steps: {steps}
studies:
  mine: {{models: [miniature], recipes: {recipes}, trials: {trials}, seeds: [0], benchmarks: [sep]}}
{more}"""


def refusal(**changes):
    with pytest.raises(ConfigurationError) as refused:
        loaded(study(**changes))
    return str(refused.value)


# --- grids ---


@pytest.mark.parametrize("model", KEPT)
def test_the_trials_of_a_method_are_the_authors_runs_in_their_order(model):
    batches = (64, 128) if model == "llama2-13b" else (64, 256)
    runs = product(METHODS, batches, (1e-6, 5e-6, 1e-5, 2e-5), (0.0, 0.1))
    for run, (method, batch, rate, warmup) in enumerate(runs):
        training = plan.step(papers(), model, f"{method}.{run % 16}").settings["training"]
        assert (training["batch_size"], training["learning_rate"], training["warmup_ratio"]) == (batch, rate, warmup)
        assert METHODS[run // 16] == method
        assert batch % (8 * training["micro_batch_size"]) == 0, "on the 8 GPUs of config/models/"


@pytest.mark.parametrize("model", KEPT)
def test_the_run_that_the_authors_kept_is_what_the_step_has_for_the_model(model):
    for method, number in zip(METHODS, KEPT[model], strict=True):
        trial, step = (plan.step(papers(), model, name) for name in (f"{method}.{number}", method))
        assert trial.settings == step.settings
        assert trial.code == step.code


def test_the_published_losses_are_of_qwens_runs():
    from bulwark.reporting.results import read_published

    printed = read_published(CONFIG / "published" / "aside_sweep.yaml")
    assert printed == {
        ("qwen2.5-7b", f"{method}.best", "validation", "validation_loss"): (loss, None)
        for method, loss in (("vanilla", 0.953548), ("ise", 0.954310), ("aside", 1.019663))
    }


def test_the_last_key_that_is_written_is_the_fastest():
    lists = {"b": ["x", "y"], "a": [1, 2, 3]}
    space = {key: ranges.Range(choices=choices) for key, choices in lists.items()}
    assert ranges.grid_size(space) == 6
    expected = [dict(zip(lists, values, strict=True)) for values in product(*lists.values())]
    assert [ranges.trial("s", number, space, grid=True) for number in range(6)] == expected
    assert list(ranges.trial("s", 4, space, grid=True)) == ["b", "a"]


def test_values_of_one_model_keep_the_place_of_their_key():
    known = papers()
    assert list(known.steps["ise"].space_on("llama2-13b")) == list(known.steps["ise"].space_on(None))
    small = [plan.trial(loaded(study()), "miniature", f"ise.{number}") for number in range(4)]
    assert small == [
        {"training.batch_size": batch, "training.learning_rate": rate} for batch, rate in product((8, 16), (5e-4, 1e-3))
    ]


@pytest.mark.parametrize(
    ("step", "model", "said"),
    [
        ("aside.16", "qwen2.5-7b", 'the grid of "aside" on qwen2.5-7b has 16 trials, "aside.0" to "aside.15"'),
        ("vanilla.99", "miniature", '"vanilla" on miniature has 4 trials, "vanilla.0" to "vanilla.3"'),
    ],
)  # fmt: skip
def test_a_number_outside_of_a_grid_is_refused_with_what_there_is(step, model, said):
    with pytest.raises(ConfigurationError) as refused:
        plan.step(papers(), model, step)
    assert said in str(refused.value)


def test_a_study_cannot_ask_for_more_trials_than_a_grid_has():
    assert 'studies.mine.recipes.0: there is no "vanilla.4"' in refusal(recipes="[vanilla.*]", trials="{vanilla: 5}")
    said = refusal(trials="{vanilla: 5}")
    assert "studies.mine.recipes.0: " in said
    assert "of which a study names 5 on miniature; its grid has 4" in said


def test_a_grid_is_made_of_lists():
    said = refusal(steps="{vanilla: {space: {training.epochs: {low: 1.0, high: 2.0}}}}")
    assert "a grid is made of lists, and training.epochs is a range" in said


def test_of_a_grid_only_what_is_used_has_to_fit_together():
    """A user's own batch may not divide the values of a grid that nobody asks for."""
    own = "{vanilla: {settings: {training: {batch_size: 6, micro_batch_size: 6}}}}"
    known = loaded(study("[vanilla]", steps=own))
    assert plan.step(known, "miniature", "vanilla").settings["training"]["batch_size"] == 6
    with pytest.raises(ConfigurationError, match="batch_size"):
        plan.step(known, "miniature", "vanilla.0")
    assert "batch_size" in refusal(steps=own), "a study of its best trial uses them"
    assert '"batch_size"' in refusal(recipes="[base]", steps="{ise: {space: {training.batch_sise: [8, 16]}}}")


# --- the best of trials ---


def test_the_best_of_trials_stands_in_recipes_like_any_step():
    assert recipes.steps_of("vanilla+aside.best@40+relearn.3") == ("vanilla", "aside.best@40", "relearn.3")
    assert [recipes.entity_of(name) for name in recipes.steps_of("vanilla+aside.best@40+relearn.3")] == [
        "vanilla", "aside", "relearn",
    ]  # fmt: skip
    assert recipes.best_of("aside.best") == "aside"
    assert recipes.best_of("aside.3") is None
    with pytest.raises(ConfigurationError, match=r'unknown step "asid"\. Did you mean "aside"'):
        recipes.check("asid.best", ["aside", "ise"], "x")


def test_it_is_made_of_the_checkpoints_of_its_trials():
    known = papers()
    made = plan.trial_checkpoints(known, "llama2-13b", "vanilla+aside.best", "2")
    assert made == [f"results/checkpoints/llama2-13b/vanilla+aside.{n}/seed2/checkpoint.json" for n in range(16)]
    assert plan.trials_to_choose(known, "miniature", "ise.best") == [f"ise.{n}" for n in range(4)]
    after = plan.step_inputs(known, "miniature", "aside.best+relearn", "0")
    assert after["parent"] == "results/checkpoints/miniature/aside.best/seed0/checkpoint.json"
    assert plan.answer_inputs(known, "miniature", "aside.best", "0", "sep")["checkpoint"] == after["parent"]


def test_a_study_says_among_how_many():
    known = loaded(study(trials="{vanilla: 3}"))
    assert plan.trials_to_choose(known, "miniature", "vanilla.best") == [f"vanilla.{n}" for n in range(3)]
    used = checks.in_use(known).resolved
    assert {name for section, _, name in used if section == "steps"} == {f"vanilla.{n}" for n in range(3)}
    assert "results/data/miniature_instructions/validation.jsonl" in plan_reports.records(known)
    drawn = study("[tried.best]", "{tried: 5}", "{tried: {like: sft, space: {training.epochs: {low: 0.5, high: 2.0}}}}")
    assert plan.trials_to_choose(loaded(drawn), "miniature", "tried.best") == [f"tried.{n}" for n in range(5)]


def spaced(space="training.epochs: {low: 0.5, high: 2.0}", like="sft"):
    return f"{{tried: {{like: {like}, space: {{{space}}}}}}}"


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"recipes": "[sft.best]"}, ("studies.mine.recipes.0", '"sft.best" is the best trial of "sft", which')),
        ({"recipes": "[tried.best]", "steps": spaced()}, ("nobody says of how many", "trials: {tried: 16}")),
        (
            {"recipes": "[tried.best]", "trials": "{tried: 2}", "steps": spaced("training.loss_on: [all, response]")},
            ("its trials vary training.loss_on", "not of the same tokens"),
        ),
        (
            {"recipes": "[tried.best]", "trials": "{tried: 2}", "steps": spaced("fraction: [0.2, 0.3]", "prune")},
            ("by its validation loss, and the step has none",),
        ),
        ({"recipes": "[vanilla]", "trials": "{vanilla: 3}"}, ('"vanilla.*"', 'or "vanilla.best"')),
    ],
)  # fmt: skip
def test_a_choice_that_cannot_be_made_is_refused(changes, parts):
    said = refusal(**changes)
    for part in parts:
        assert part in said, said


def test_studies_agree_among_how_many_a_choice_is_made():
    other = "models: [miniature], recipes: [vanilla.best], seeds: [0], benchmarks: [sep]"
    text = study(trials="{vanilla: 2}", more=f"  other: {{{other}, trials: {{vanilla: 3}}}}")
    assert plan.trials_to_choose(loaded(text), "miniature", "vanilla.best") == ["vanilla.0", "vanilla.1"]
    with pytest.raises(ConfigurationError, match="studies name 2 and 3 trials of it for miniature"):
        loaded(text.replace("run: [mine]", "run: [mine, other]"))


def test_the_trials_of_a_choice_share_jobs():
    text = study(more="models: {miniature: {resources: {shared_hours: 24}}}")
    assert shares.shares(loaded(text), "miniature") == {"base": [[f"vanilla.{n}" for n in range(4)]]}
