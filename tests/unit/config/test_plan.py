"""Planning in process: what jobs read and get, and wrong names and settings, refused before any job."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bulwark.config import loading, machine, overlays, paths, plan, plan_reports, plan_vectors
from bulwark.config.costs import estimates
from bulwark.errors import BulwarkError, ConfigurationError
from bulwark.miniature import records, settings
from bulwark.settings import Closed, validated

CONFIG = Path(__file__).parents[3] / "config"


def loaded(*texts):
    """The catalogue of config/config.yaml with overlays (text, or names of files in config/) laid over it."""
    files = overlays.read([CONFIG / text for text in texts if text.endswith(".yaml")], CONFIG).files
    own = [overlays.text(text) for text in texts if not text.endswith(".yaml")]
    return loading.load(overlays.Configuration((*files, *own)), CONFIG)


@pytest.fixture(scope="module")
def papers():
    return loaded()


@pytest.fixture(scope="module")
def miniature():
    return loaded("miniature.yaml")


@pytest.mark.parametrize(
    ("function", "wildcards", "named", "nearest"),
    [
        (plan.scores, ("miniature", "asdie", "sep"), '"asdie"', '"aside"'),
        (plan.scores, ("miniature", "vanilla+asdie", "sep"), '"asdie"', '"aside"'),
        (plan.scores, ("minature", "aside", "sep"), '"minature"', '"miniature"'),
        (plan.scores, ("miniature", "aside", "spe"), '"spe"', '"sep"'),
        (plan.step, ("miniature", "isee"), '"isee"', '"ise"'),
        (plan.model_description, ("minature",), '"minature"', '"miniature"'),
        (plan.records_recipe, ("alpaca_clean", "train"), '"alpaca_clean"', '"alpaca_cleaned"'),
        (plan.records_recipe, ("alpaca_cleaned", "trian"), '"trian"', '"train"'),
        (plan_reports.table, ("sep",), '"sep"', '"aside_sep"'),
        (plan_reports.figure, ("sep",), '"sep"', '"aside_sep"'),
        (plan_reports.refuse_target, ("table", "sep"), '"sep"', '"aside_sep"'),
        (plan_reports.refuse_target, ("figure", "sep"), '"sep"', '"aside_sep"'),
        (plan_reports.refuse_target, ("table", "injections"), '"injections"', '"aside_injections"'),
        (plan_reports.refuse_target, ("paper", "asid"), '"asid"', '"aside"'),
        (plan_vectors.contrast_records, ("miniature", "base", "rud"), '"rud"', '"rude"'),
        (plan_vectors.contrast_records, ("miniature", "asdie", "rude"), '"asdie"', '"aside"'),
    ],
)
def test_an_unknown_name_in_a_path_is_an_error_with_the_nearest_one(papers, function, wildcards, named, nearest):
    with pytest.raises(ConfigurationError) as refused:
        function(papers, *wildcards)
    assert named in str(refused.value)
    assert f"Did you mean {nearest}?" in str(refused.value)


CHANGES = {
    "world: {rarity: 0.5}": {"records", "corpus"},
    "world: {sentences: [1, 3]}": {"records", "corpus"},
    "pretraining: {records: 40}": {"corpus"},
    "pretraining: {validation_records: 9}": {"corpus"},
    "pretraining: {epochs: 4}": {"model"},
    "pretraining: {seed: 1}": {"model"},
    "model: {hidden_size: 64}": {"model"},
    "model: {max_position_embeddings: 128}": {"model"},
    "{}": set(),
    "world: {rarity: 0.005}, model: {hidden_size: 128}": set(),  # as they are by default
}


def asked_of_the_miniature(known):
    """What decides its records, its corpus, and (beside these) its base model."""
    return {
        "records": plan.records_recipe(known, "miniature_sep", "test"),
        "corpus": plan.records_recipe(known, "miniature_pretraining", "train"),
        "model": plan.model_description(known, "miniature"),
    }


@pytest.mark.parametrize("change", CHANGES)
def test_only_what_decides_the_records_of_the_miniature_makes_them_stale(miniature, change):
    written = change if change == "{}" else f"{{{change}}}"
    known = loaded("miniature.yaml", f"models: {{miniature: {{source: {{miniature: {written}}}}}}}")
    before, now = asked_of_the_miniature(miniature), asked_of_the_miniature(known)
    assert {what for what in now if now[what] != before[what]} == CHANGES[change]


def test_a_default_of_the_miniature_counts_as_if_it_were_written(miniature, monkeypatch):
    """The digest of code does not cover defaults, which are no code but settings."""
    before = asked_of_the_miniature(miniature)
    monkeypatch.setattr(settings.WorldSettings.model_fields["rarity"], "default", 0.5)
    settings.WorldSettings.model_rebuild(force=True)
    monkeypatch.setattr(settings.MiniatureSettings.model_fields["world"], "default", settings.WorldSettings())
    try:
        settings.MiniatureSettings.model_rebuild(force=True)
        now = asked_of_the_miniature(miniature)
    finally:
        monkeypatch.undo()
        for cls in (settings.WorldSettings, settings.MiniatureSettings):
            cls.model_rebuild(force=True)
    assert {what for what in now if now[what] != before[what]} == {"records", "corpus"}
    assert asked_of_the_miniature(miniature) == before


@pytest.mark.parametrize(
    ("dataset", "split"),
    [(dataset, split) for dataset in ("pretraining", *records.DATASETS) for split in records.splits(dataset)],
)
def test_the_records_of_the_miniature_depend_on_nothing_but_what_is_asked(dataset, split):
    """What the job gets is made of what the plan asks for; all other settings are then the defaults."""
    sizes = settings.PretrainingSettings(records=40, validation_records=9, epochs=5, seed=3)
    model = settings.ModelSettings(hidden_size=16, heads=2)
    whole = settings.MiniatureSettings(world=settings.WorldSettings(seed=5), model=model, pretraining=sizes)
    asked = validated(settings.MiniatureSettings, whole.of_records(), "")
    assert asked.model != whole.model
    assert records.records(dataset, split, asked) == records.records(dataset, split, whole)


def test_a_trait_without_data_is_explained(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mean.pt").touch()
    known = loaded("traits: {mean: {files: {miniature: mean.pt}}}")
    with pytest.raises(ConfigurationError, match=r"overlay\.yaml:1, traits\.mean: .*\"qwen3-8b\""):
        plan_vectors.contrast_records(known, "qwen3-8b", "base", "mean")
    assert plan_vectors.published_vectors(known, "miniature", "base", "mean") == "mean.pt"
    path = "miniature/base/seed0/mean.safetensors"
    assert re.fullmatch(plan_vectors.published_paths(known), path)
    assert not re.fullmatch(plan_vectors.published_paths(known), path.replace("miniature", "qwen3-8b"))


@pytest.mark.parametrize(
    ("overlay", "parts"),
    [
        ("studies: {aside: {recipes: [vanila]}}", ["studies.aside.recipes", '"vanila"', '"vanilla"']),
        ("studies: {aside: {models: [minature]}}", ["studies.aside.models", '"minature"', '"miniature"']),
        ("studies: {aside: {benchmarks: [spe]}}", ["studies.aside.benchmarks", '"spe"', '"sep"']),
        ("studies: {aside: {tables: [sep]}}", ["studies.aside.tables", '"sep"', '"aside_sep"']),
        ("studies: {aside: {seed: [0]}}", ["studies.aside", '"seed"', '"seeds"']),
        (
            "steps: {heretic: {settings: {prompts: {search: train}}}}",
            ["heretic", 'directions and search are both the split "train"'],
        ),
        (
            "benchmarks: {mmlu: {settings: {fewshot: {data: mmlu, split: def, count: 5}}}}",
            ['"def"', 'Did you mean "dev"?'],
        ),
        ("stuides: {}", ['"stuides"', '"studies"']),
        ("steps: {aside: {settings: {alhpa: 1.0}}}", ["overlay.yaml:1, steps.aside", '"alhpa"', '"alpha"']),
        ("steps: {aside: {settings: {training: {learning_rate: fast}}}}", ["training.learning_rate", '"fast"']),
        ("steps: {aside: {kind: asde}}", ["overlay.yaml:1, steps.aside", '"asde"', '"aside"']),
        ("models: {other: {template: chat}}", ["models.other", '"source"']),
        ("models: {miniature: {template: chatt}}", ["overlay.yaml:1, models.miniature", '"chatt"', '"chat"']),
        ("models: {miniature: {source: {miniature: {world: {sed: 1}}}}}", ["world.sed", '"seed"']),
        ("models: {miniature: {resources: {trian: {hours: 1.0, mem_gb: 1.0}}}}", ['"resources.trian"', '"train"']),
        ("studies: {aside: {recipes: [ise+]}}", ["studies.aside.recipes", '"ise+"']),
        ("steps: {asidee: {settings: {alpha: 1.0}}}", ['"kind" is missing', "steps/asidee.yaml", '"aside"']),
        (
            "steps: {aside: {settings: {data: alpaca_clean}}}",
            ["overlay.yaml:1, steps.aside", '"alpaca_clean"', '"alpaca_cleaned"'],
        ),
        ("tables: {aside_sep: {published: asid}}", ["overlay.yaml:1, tables.aside_sep", '"asid"', '"aside"']),
        ("datasets: {sep: {kind: spe}}", ["overlay.yaml:1, datasets.sep", '"spe"', '"sep"']),
        ("datasets: {miniature_sep: {source: {miniature: sepp}}}", ['"sepp"', '"sep"']),
        (
            "tables: {aside_sep: {columns: [{benchmark: sep, metric: separtion, label: x}], notes: []}}",
            ["overlay.yaml:1, tables.aside_sep", '"separtion"', '"separation"'],
        ),
    ],
)
def test_a_mistake_in_the_configuration_is_named(overlay, parts):
    with pytest.raises(ConfigurationError) as refused:
        loaded(overlay)
    for part in parts:
        assert part in str(refused.value)


def test_a_number_that_yaml_reads_as_text_is_explained():
    with pytest.raises(ConfigurationError) as refused:
        loaded("steps: {aside: {settings: {training: {learning_rate: 15e-4}}}}")
    for part in ("overlay.yaml:1, steps.aside", "training.learning_rate", "write 15.0e-4"):
        assert part in str(refused.value)


@pytest.mark.parametrize(
    ("overlay", "function", "wildcards", "message"),
    [
        (
            "steps: {steer: {models: {miniature: {settings: {vectors: {layers: [4]}}}}}}",
            plan.step,
            ("steer",),
            "overlay.yaml:1, steps.steer.models.miniature.settings.vectors.layers: 4 is not a layer key",
        ),
        (
            "steps: {steer: {models: {miniature: {settings: {analysis: {layers: [0]}}}}}}",
            plan.step,
            ("steer",),
            "overlay.yaml:1, steps.steer.models.miniature.settings.analysis.layers: 0 is not a layer key",
        ),
        (
            "steps: {idp: {models: {miniature: {settings: {preservation: {layers: [9]}}}}}}",
            plan.step,
            ("idp",),
            "overlay.yaml:1, steps.idp.models.miniature.settings.preservation.layers: 9, but the model has 4 blocks",
        ),
        (
            "benchmarks: {detectors: {models: {miniature: {settings: {vectors: {layers: [4]}, projections: null}}}}}",
            plan.scores,
            ("base", "detectors"),
            "overlay.yaml:1, benchmarks.detectors.models.miniature.settings.vectors.layers: 4 is not a layer key",
        ),
        (
            "projections: {miniature_clean_rude: {settings: {vectors: {layers: [4]}}}}",
            plan_vectors.projection,
            ("base", "miniature_clean_rude"),
            "overlay.yaml:1, projections.miniature_clean_rude.settings.vectors.layers: 4 is not a layer key",
        ),
        (
            "traits: {rude: {choice: {candidates: [4]}}}",
            plan_vectors.layer_steering,
            ("base", "rude"),
            "overlay.yaml:1, traits.rude.choice.candidates: 4 is not a layer key",
        ),
    ],
)
def test_a_layer_that_the_model_does_not_have_is_refused(overlay, function, wildcards, message):
    known = loaded("miniature.yaml", overlay)
    with pytest.raises(ConfigurationError) as refused:
        function(known, "miniature", *wildcards)
    assert message in str(refused.value)


def test_a_step_reads_its_parent_and_what_its_settings_name(miniature):
    steered = plan.step_inputs(miniature, "miniature", "ise+steer", "2")
    assert steered["parent"] == "results/checkpoints/miniature/ise/seed2/checkpoint.json"
    assert "results/vectors/miniature/ise/seed2/rude.safetensors" in steered.values()
    for prefix in ("", "ise+"):
        detected = plan.step_inputs(miniature, "miniature", f"{prefix}pis_detected", "1")
        assert f"results/checkpoints/miniature/{prefix}steer/seed1/checkpoint.json" in detected.values()


def test_a_benchmark_reads_examples_vectors_and_projections(papers):
    model = "qwen2.5-7b-instruct"
    assert "results/data/mmlu/dev.jsonl" in plan.answer_inputs(papers, model, "sft", "1", "mmlu").values()
    asked = plan.answer_inputs(papers, model, "sft", "1", "detectors")
    assert asked["checkpoint"] == f"results/checkpoints/{model}/sft/seed1/checkpoint.json"
    # The base model's vectors and projections, though it is a fine-tuned model that is measured.
    assert f"results/vectors/{model}/base/seed1/evil.safetensors" in asked.values()
    assert f"results/projections/{model}/base/seed1/persona_mixture.parquet" in asked.values()


def test_what_only_scoring_reads_is_no_setting_of_the_answers(miniature):
    answering = plan.answers(miniature, "miniature", "base", "traits").settings
    scoring = plan.scores(miniature, "miniature", "base", "traits").settings
    assert "scoring" in scoring
    assert answering == {key: value for key, value in scoring.items() if key != "scoring"}


def test_what_scoring_names_may_be_of_the_recipe_before_the_last_step(papers, monkeypatch):
    class Scoring(Closed):
        def inputs(self):
            return {"before": "checkpoints/{model}/{parent}/seed{seed}/checkpoint.json"}

    monkeypatch.setattr(plan, "_of_scoring", lambda resolved: Scoring().inputs())
    for recipe, before in (("sft+steer", "sft"), ("sft", "base"), ("base", "base")):
        asked = plan.scoring_inputs(papers, "qwen2.5-7b-instruct", recipe, "1", "xstest")
        assert asked == {"before": f"results/checkpoints/qwen2.5-7b-instruct/{before}/seed1/checkpoint.json"}


@pytest.mark.parametrize(
    ("kind", "path", "said"),
    [
        ("benchmarks", "checkpoints/{model}/{parnt}/seed{seed}/checkpoint.json", '"parnt".*"parent"'),
        ("benchmarks", "checkpoints/{model}/{prefix}x/seed{seed}/checkpoint.json", '"prefix"'),
        ("steps", "checkpoints/{model}/{recipe}/seed{seed}/checkpoint.json", '"recipe"'),
        ("projections", "vectors/{model}/{prefix}x/seed{seed}/evil.safetensors", '"prefix"'),
        ("steps", "data/a{/train.jsonl", "is no path"),
    ],
)
def test_a_path_that_the_plan_cannot_fill_in_is_told_when_the_configuration_is_read(kind, path, said):
    with pytest.raises(ConfigurationError, match=f"^config/x.yaml, line 3: .*{said}"):
        paths.check_places(kind, path, "config/x.yaml, line 3")


def test_an_attack_takes_the_resources_of_generation(papers):
    gpus = {
        recipe: plan.step(papers, "llama3.1-8b-instruct", recipe).resources["gpu"]
        for recipe in ("vanilla", "vanilla+heretic")
    }
    assert gpus == {"vanilla": 8, "vanilla+heretic": 1}


def test_a_job_gets_the_time_that_is_expected_of_it(papers):
    work = plan.step(papers, "qwen2.5-7b", "vanilla+aside")
    assert work.time == estimates.step(papers, "qwen2.5-7b", "aside")
    assert work.resources["runtime"] == work.time.minutes(8) == round(90 * work.time.hours)
    assert plan.answers(papers, "qwen2.5-7b", "aside", "sep").time == estimates.answers(papers, "qwen2.5-7b", "sep")
    assert plan.scores(papers, "qwen2.5-7b", "aside", "sep").time.hours == 0


def test_an_entity_is_resolved_once(papers):
    assert papers.step("qwen2.5-7b", "aside") is papers.step("qwen2.5-7b", "aside")
    settings = [plan.step(papers, "qwen2.5-7b", recipe).settings for recipe in ("aside", "vanilla+aside")]
    assert settings[0] is settings[1]


def test_what_the_machine_lacks_is_found_before_the_first_job(monkeypatch):
    needed = {"apply_step for a": 8, "generate_answers for b": 1}
    machine.refuse_without_gpus(needed, 8)
    with pytest.raises(BulwarkError, match=r"1 jobs .* apply_step for a needs 8, here are 1"):
        machine.refuse_without_gpus(needed, 1)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    judges = {"a": None, "score_answers for b": {"kind": "openai", "openai": {"model": "m"}}}
    with pytest.raises(BulwarkError, match="score_answers for b asks the judge m"):
        machine.refuse_without_key(judges)
    monkeypatch.setenv("OPENAI_API_KEY", "x")
    machine.refuse_without_key(judges)


def test_jobs_that_get_fewer_threads_than_they_want_are_told():
    wanted = {"apply_step for a": 32, "generate_answers for b": 8, "make_table for c": 1}
    told = machine.capped(wanted, 4)
    assert told.startswith("2 jobs get fewer threads than they are meant to have: apply_step for a should have 32")
    assert "has 4 (-c)" in told
    assert machine.capped(wanted, 32) == ""


def test_what_configurations_show_lies_apart_and_what_they_measure_is_shared(papers, miniature):
    """The two show tables and figures of the same names."""
    both = [
        {*plan_reports.shown(each), *paths.claims(each.name), *paths.results(each.name)} for each in (papers, miniature)
    ]
    assert {path.rsplit("/", 1)[-1] for path in both[0] & {*plan_reports.shown(papers)}} & {
        path.rsplit("/", 1)[-1] for path in both[1]
    }
    assert not both[0] & both[1]
    for catalogue, shown in zip((papers, miniature), both, strict=True):
        assert all(path.startswith(f"results/reports/{catalogue.name}/") for path in shown)
    # the base model of the demo's studies is that of all of the miniature
    demo = loaded("miniature.yaml", "demo.yaml")
    assert {*plan_reports.scores(demo)} < {*plan_reports.scores(miniature)}


def test_the_path_of_another_configurations_report_says_whose_it_is(miniature):
    with pytest.raises(ConfigurationError) as raised:
        plan_reports.refuse_report(miniature, "papers")
    for said in ("results/reports/papers/", '"miniature"', "results/reports/miniature/", "--configfile"):
        assert said in str(raised.value)


def test_the_tidy_table_holds_every_measurement_of_the_studies_once(miniature):
    cells = plan_reports.measured(miniature).cells
    files = [cell["scores"] for cell in cells]
    assert sorted(files) == sorted({*plan_reports.scores(miniature), *plan_reports.analyses(miniature)})


@pytest.mark.parametrize(
    ("asked", "answer"),
    [
        ("tabel_aside_sep", 'Did you mean "table_aside_sep"?'),
        ("results/data/own/tran.json", 'Did you mean "results/data/own/{split}.jsonl"?'),
        ("results/dat/own/train.jsonl", 'Did you mean "results/data/own/train.jsonl"?'),
        ("results/datta/own", 'Paths there look like "results/data/{dataset}/{split}.jsonl"'),
        ("elsewhere/own", "no rule makes it. All paths"),
    ],
)
def test_what_no_rule_makes_is_answered_with_what_is_nearest(asked, answer):
    made = [r"results/data/{dataset,[^/]+}/{split,[^/.]+}.jsonl", r"results/models/{model,[^/]+}/model.json"]
    with pytest.raises(ConfigurationError) as refused:
        plan_reports.refuse_unknown(asked, ["table_aside_sep", "all"], made)
    assert answer in str(refused.value)


@pytest.mark.parametrize(
    ("setting", "decides"),
    [
        ("log_every: 3", False),
        ("save_minutes: 1.5", False),
        ("save_every: 7", False),
        ("learning_rate: 0.5", True),
        ("snapshots: [2, 19, 38, 76]", True),  # a checkpoint of its own, which would be missing
    ],
)
def test_what_cannot_change_a_result_is_not_asked_of_it(setting, decides):
    before, after = (
        plan.decisive_settings(loaded("miniature.yaml", *text), "miniature", "sft")
        for text in ((), (f"steps: {{sft: {{settings: {{training: {{{setting}}}}}}}}}",))
    )
    assert (before != after) is decides
    assert plan.step(loaded("miniature.yaml"), "miniature", "sft").settings["training"]["log_every"] == 10


def test_the_settings_of_an_attack_decide_as_they_are(miniature):
    assert (
        plan.decisive_settings(miniature, "miniature", "heretic")
        == plan.step(miniature, "miniature", "heretic").settings
    )


def test_a_snapshot_is_taken_from_the_training_that_keeps_it(miniature):
    assert plan.snapshot_source(miniature, "miniature", "vanilla+sft@38", "1") == paths.checkpoint(
        "miniature", "vanilla+sft", 1
    )
    assert plan.snapshot_step(miniature, "miniature", "vanilla+sft@38") == 38
    inputs = plan.step_inputs(miniature, "miniature", "sft@38+heretic", "0")
    assert inputs["parent"] == paths.checkpoint("miniature", "sft@38", 0)


@pytest.mark.parametrize(
    ("recipe", "told"),
    [
        ("sft@40", ["after 40 optimizer steps", "19, 38, 76", 'Did you mean "sft@38"', "training.snapshots"]),
        ("sft@38+sft@20+heretic", ["after 20 optimizer steps", 'Did you mean "sft@19"']),
        ("aside@3", ["it keeps none"]),
        ("heretic@3", ["trains nothing"]),
    ],
)
def test_a_snapshot_that_no_training_keeps_is_refused(recipe, told, miniature):
    for function in (
        lambda: plan.step(miniature, "miniature", recipe),
        lambda: plan.answers(miniature, "miniature", recipe, "tasks"),
    ):
        with pytest.raises(ConfigurationError) as error:
            function()
        assert [part for part in told if part not in str(error.value)] == []


def test_a_study_of_a_snapshot_that_no_training_keeps_is_refused():
    with pytest.raises(ConfigurationError, match="keeps no snapshot after 40"):
        loaded("miniature.yaml", "name: mine\nstudies: {aside: {recipes: [base, vanilla, ise, aside, aside@40]}}")


def test_a_form_of_a_template_is_refused_where_the_template_has_none(miniature):
    assert plan.decisive_settings(miniature, "miniature", "vanilla+sandwich") == {"form": "sandwich_plain"}
    assert plan.step(miniature, "qwen2.5-7b", "delimiters+aside")
    with pytest.raises(
        ConfigurationError, match=r'"vanilla\+sandwich\+delimiters" of miniature: .*"chat_sandwich_plain"'
    ):
        plan.step(miniature, "miniature", "vanilla+sandwich+delimiters")
    plain = "models: {miniature: {template: plain}}\nstudies: {aside: {recipes: [vanilla, ise, aside, sandwich]}}"
    with pytest.raises(ConfigurationError, match='has no form "sandwich_plain"; these have one: chat, alpaca'):
        loaded("miniature.yaml", plain)
