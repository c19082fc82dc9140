"""The files of a configuration: config/config.yaml and what is laid over it."""

from __future__ import annotations

from pathlib import Path

import pytest

from bulwark.config import loading, overlays, plan
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
    assert f'one.yaml:1, name: "{name}" is the name of' in refused(tmp_path, f"name: {name}")


@pytest.mark.parametrize("name", ["a b", "a/b", "..", "'.'", "''", "-x", "é", "'x\ty'", "x" * 101, "3", "yes", "[a]"])
def test_a_name_that_cannot_be_part_of_a_path_is_refused(tmp_path, name):
    message = refused(tmp_path, f"name: {name}")
    assert "one.yaml:1, name: " in message
    assert "Write" in message


def test_only_known_options_are_taken(tmp_path):
    assert read(tmp_path, "name: mine", options={"replace": True}).options == {"replace": True}
    assert 'Did you mean "replace"?' in refused(tmp_path, "name: mine", options={"replaec": True})
    for value, means in ((True, True), ("true", True), ("False", False)):
        assert overlays.replace_finished(read(tmp_path, "name: mine", options={"replace": value}).options) is means
    for wrong in ("yes", 1, None):
        assert "write replace=true or" in refused(tmp_path, "name: mine", options={"replace": wrong})


@pytest.mark.parametrize(
    ("section", "name", "written"),
    [
        ("models", "llama 3.1 (8B), it's", "llama-3.1-8B-it-s"),
        ("models", "org/model", "org-model"),
        ("datasets", "a:b", "a-b"),
        ("benchmarks", "my.sep", "my-sep"),
        ("studies", "mine & yours", "mine-yours"),
    ],
)
def test_the_name_of_an_entity_is_told_first_with_what_to_write(tmp_path, section, name, written):
    """Also where the configuration has no name of its own yet."""
    message = refused(tmp_path, f'{section}:\n  "{name}": {{}}')
    assert f'one.yaml:2, {section}.{name}: "{name}" cannot be a name' in message
    assert f'Write "{written}"' in message


# --- what is laid over what ---

MINE = """
name: mine
models:
  mine:
    source: {path: my-model}
    template: chat
    resources: {train: {hours: 0.1, mem_gb: 4}, generate: {hours: 0.1, mem_gb: 4}}
"""


def training(folder, *texts, model="miniature", step="vanilla"):
    """The training settings of a step on a model."""
    return loading.load(read(folder, *texts), CONFIG).step(model, step).settings.training


def test_an_overlays_value_for_all_models_beats_the_files_for_one(tmp_path):
    own = training(tmp_path, "name: mine")
    over = training(tmp_path, "name: mine\nsteps: {vanilla: {settings: {training: {learning_rate: 0.5}}}}")
    assert own.learning_rate != 0.5
    assert over.learning_rate == 0.5
    assert over.batch_size == own.batch_size, "what the overlay leaves out is the file's, for that model"


def test_within_an_overlay_the_value_for_a_model_wins(tmp_path):
    text = """
name: mine
steps:
  vanilla:
    settings: {training: {learning_rate: 0.5, weight_decay: 0.25}}
    models: {miniature: {settings: {training: {learning_rate: 0.75}}}}
"""
    found = training(tmp_path, text)
    assert (found.learning_rate, found.weight_decay) == (0.75, 0.25)
    assert training(tmp_path, text, model="qwen2.5-7b").learning_rate == 0.5


def test_of_two_overlays_the_last_wins_for_all_models(tmp_path):
    first = "name: mine\nsteps: {vanilla: {models: {miniature: {settings: {training: {learning_rate: 0.5}}}}}}"
    second = "name: mine\nsteps: {vanilla: {settings: {training: {learning_rate: 0.25}}}}"
    assert training(tmp_path, first, second).learning_rate == 0.25
    assert training(tmp_path, second, first).learning_rate == 0.5


def test_a_benchmarks_data_and_cost_are_the_overlays_too(tmp_path):
    found = loading.load(
        read(tmp_path, "name: mine\nbenchmarks: {sep: {dataset: miniature_tasks, cost: 7.0}}"), CONFIG
    ).benchmark("miniature", "sep")
    assert (found.dataset, found.cost) == ("miniature_tasks", 7.0)


def test_a_variant_has_what_an_overlay_says_of_what_it_is_like_and_keeps_its_own(tmp_path):
    text = "name: mine\nsteps: {pis: {settings: {schedule: {multiplier: 9.0}}}}"
    known = loading.load(read(tmp_path, text), CONFIG)
    schedules = {name: known.step("qwen2.5-7b-instruct", name).settings.schedule for name in ("pis_50", "pis_times_3")}
    assert schedules["pis_50"].multiplier == 9.0
    assert schedules["pis_times_3"].multiplier == 3.0


def test_an_overlay_of_a_variant_beats_what_the_others_file_says_of_a_model(tmp_path):
    text = "name: mine\nsteps: {pale: {like: vanilla, settings: {training: {learning_rate: 0.5}}}}"
    assert training(tmp_path, text, step="pale").learning_rate == 0.5
    assert training(tmp_path, text, step="vanilla").learning_rate != 0.5


def test_an_overlay_of_what_a_variant_is_like_leaves_what_the_variant_says_of_a_model(tmp_path):
    first = (
        "name: mine\nsteps: {pale: {like: vanilla, models: {miniature: {settings: {training: {learning_rate: 0.5}}}}}}"
    )
    second = "name: mine\nsteps: {vanilla: {settings: {training: {learning_rate: 0.25}}}}"
    assert training(tmp_path, first, second, step="pale").learning_rate == 0.5
    assert training(tmp_path, first, second, step="pale", model="qwen2.5-7b").learning_rate == 0.25


# --- where things stand ---


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (
            "steps:\n  aside:\n    settings:\n      alhpa: 1.0",
            ['one.yaml:5, steps.aside.settings: unknown key "alhpa"'],
        ),
        ("steps:\n  aside:\n    kind: asde", ['one.yaml:4, steps.aside.kind: there is no kind of step "asde"']),
        (
            "steps:\n  aside:\n    settings: {data: alpaca_clean}",
            ["one.yaml:4, steps.aside.settings", '"alpaca_cleaned"'],
        ),
        ("steps:\n  x:\n    kind: vanilla\n    like: vanila", ['one.yaml:5, steps.x.like: there is no "vanila"']),
        (
            "studies:\n  aside:\n    recipes:\n    - vanilla\n    - asid",
            ["one.yaml:6, studies.aside.recipes.1", '"asid"'],
        ),
        ("studies:\n  aside:\n    seeds: [0,\n      0]", ['one.yaml:5, studies.aside.seeds.1: "0" stands twice']),
        ("\nstuides: {}", ['one.yaml:3: unknown section "stuides"', '"studies"']),
        ("steps:\n  aside: {}\nsteps: {}", ['one.yaml:4: the key "steps" stands twice, first in line 2']),
        ("models:\n  a b: {}", ['one.yaml:3, models.a b: "a b" cannot be a name', 'Write "a-b"']),
        (
            "steps:\n  vanilla:\n    models:\n      miniature:\n        settings:\n          training: {batch_size: x}",
            ['one.yaml:7, steps.vanilla.models.miniature.settings: "training.batch_size"'],
        ),
    ],
)
def test_a_message_names_file_and_line(tmp_path, text, parts):
    message = refused(tmp_path, f"name: mine\n{text}")
    for part in parts:
        assert part in message


def test_a_value_of_a_file_that_an_overlay_makes_wrong_is_told_where_it_stands(tmp_path):
    """The overlay changes one key; the other, which no longer fits, stands in the entity's own file."""
    text = MINE + "studies: {aside: {models: [miniature]}}\nsteps: {vanilla: {settings: {training: {batch_size: 7}}}}"
    assert "training" in refused(tmp_path, text)


def test_an_entitys_own_file_is_named_with_its_line():
    known = loading.load(overlays.read([], CONFIG), CONFIG)
    place = known.where("steps", "vanilla", "kind")
    file, line = place.split(",")[0].split(":")
    assert file == "config/steps/vanilla.yaml"
    assert (CONFIG.parent / file).read_text().splitlines()[int(line) - 1].startswith("kind:")


# --- what is in use is checked whole, the rest by its names ---


def test_what_is_asked_for_of_one_model_is_not_checked_of_others(tmp_path):
    study = "{aside: {models: [mine], recipes: [vanilla], tables: [], figures: [], claims: []}}"
    text = MINE + f"run: [aside]\nstudies: {study}\n"
    odd = "steps: {vanilla: {settings: {training: {batch_size: 7, micro_batch_size: 7}}, "
    odd += "models: {miniature: {settings: {training: {micro_batch_size: 2}}}}}}"
    known = loading.load(read(tmp_path, text + odd), CONFIG)
    assert known.step("mine", "vanilla").settings.training.batch_size == 7
    with pytest.raises(ConfigurationError, match=r"steps\.vanilla\.models\.miniature\.settings.*batch_size"):
        plan.step(known, "miniature", "vanilla")
    assert "models.miniature" in refused(tmp_path, text.replace("models: [mine]", "models: [mine, miniature]") + odd)


def test_steps_in_the_place_of_epochs_for_a_model_of_ones_own(tmp_path):
    text = MINE + "studies: {aside: {models: [mine], recipes: [vanilla], tables: [], figures: [], claims: []}}\n"
    found = training(
        tmp_path, text + "steps: {vanilla: {settings: {training: {epochs: null, max_steps: 40}}}}", model="mine"
    )
    assert (found.epochs, found.max_steps) == (None, 40)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("steps: {spare: {like: vanilla, settings: {trainig: {}}}}", '"trainig"'),
        ("steps: {spare: {like: vanilla, settings: {data: nothing}}}", '"nothing"'),
        ("steps: {vanilla: {models: {minature: {}}}}", '"miniature"'),
        ("datasets: {spare: {kind: sepp, source: {path: x.json}, splits: {test: 1.0}}}", '"sep"'),
        ("benchmarks: {spare: {like: sep, dataset: sepp}}", '"sep"'),
        ("projections: {spare: {dataset: nothing, settings: {vectors: {traits: [evil], layers: [1]}}}}", '"nothing"'),
    ],
)
def test_a_wrong_name_in_what_no_list_uses_is_told(tmp_path, text, part):
    message = refused(tmp_path, f"name: mine\n{text}")
    assert "one.yaml:2" in message
    assert part in message


# --- like ---


def test_a_variant_is_laid_over_what_it_is_like(tmp_path):
    text = "steps: {b: {like: vanilla, cost: 2.0}, c: {like: b, settings: {training: {learning_rate: 0.5}}}}"
    known = loading.load(read(tmp_path, f"name: mine\n{text}"), CONFIG)
    assert (known.steps["c"].kind, known.steps["c"].cost) == ("vanilla", 2.0)


@pytest.mark.parametrize("other", ["[vanilla]", "{a: b}", "3", "true", "''", "../vanilla", "nothing"])
def test_what_nothing_can_be_like_is_refused(tmp_path, other):
    assert "one.yaml:2, steps.b.like: " in refused(tmp_path, f"name: mine\nsteps: {{b: {{like: {other}}}}}")


def test_a_circle_and_a_long_chain(tmp_path):
    message = refused(tmp_path, "name: mine\nsteps: {a: {like: b}, b: {like: a}}")
    assert "is like" in message
    assert "stand for itself" in message
    chain = "\n".join(f"  s{n}: {{like: {f's{n - 1}' if n else 'vanilla'}}}" for n in range(1500))
    assert "more than 20 entities" in refused(tmp_path, f"name: mine\nsteps:\n{chain}")


# --- hostile files: an error with file and line, never a traceback ---

HOSTILE = {
    "empty": "",
    "only a comment": "# nothing",
    "a list": "- a",
    "a text": "hello",
    "broken": "a: [1",
    "tabs": "name: mine\n\tsteps: {}",
    "two documents": "name: mine\n---\nname: mine",
    "nested by brackets": "name: mine\nsteps: " + "[" * 100_000,
    "nested by lines": "name: mine\nsteps:\n" + "\n".join(" " * n + "a:" for n in range(1, 2000)),
    "nested by dashes": "name: mine\nsteps:\n" + "- " * 10_000 + "x",
    "nested and closed": "name: mine\nsteps: " + "{a: " * 10_000 + "1" + "}" * 10_000,
    "an alias of itself": "name: mine\nsteps: &a {x: *a}",
    "a list that holds itself": "name: mine\nstudies: {aside: {seeds: &a [*a]}}",
    "an alias of nothing": "name: mine\nsteps: *nothing",
    "a bomb of aliases": "name: mine\na0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n"
    + "\n".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)),
    "a tag of Python": "name: mine\nsteps: !!python/object/apply:os.system [ls]",
    "a set": "name: mine\nsteps: !!set {vanilla}",
    "binary": "name: mine\nsteps: {aside: {description: !!binary aGVsbG8=}}",
    "a control character": 'name: mine\nsteps: "\x01"',
    "half a character": 'name: mine\nsteps: {aside: {description: "\\ud800"}}',
    "a truth as a key": "name: mine\nsteps: {yes: {kind: vanilla}}",
    "nothing as a key": "name: mine\nsteps: {~: {kind: vanilla}}",
    "a number as a name": "name: mine\nsteps: {3: {kind: vanilla}}",
    "a decimal as a name": "name: mine\nmodels: {3.1: {template: chat}}",
    "a list as a key": "name: mine\nsteps: {[a]: b}",
    "a section that is a list": "name: mine\nsteps: [vanilla]",
    "a section that is a text": "name: mine\nstudies: aside",
    "a step that is a list": "name: mine\nsteps: {vanilla: [1]}",
    "settings that are a list": "name: mine\nsteps: {vanilla: {settings: [1]}}",
    "models that are a list": "name: mine\nsteps: {vanilla: {models: [miniature]}}",
    "a model that is a number": "name: mine\nsteps: {vanilla: {models: {miniature: 3}}}",
    "models that are nothing": "name: mine\nsteps: {vanilla: {models: null, settings: null}}",
    "a seed below zero": "name: mine\nstudies: {aside: {seeds: [-1]}}",
    "a seed without end": "name: mine\nstudies: {aside: {seeds: [" + "9" * 5000 + "]}}",
    "a large seed": "name: mine\nstudies: {aside: {seeds: [99999999999999999999]}}",
    "a seed that is a text": "name: mine\nstudies: {aside: {seeds: [zero]}}",
    "infinity": "name: mine\nsteps: {vanilla: {cost: .inf}}",
    "no number": "name: mine\nsteps: {vanilla: {settings: {training: {learning_rate: .nan}}}}",
    "data above": "name: mine\nsteps: {vanilla: {settings: {data: ../../etc}}}",
    "data in a folder": "name: mine\nsteps: {vanilla: {settings: {data: a/b}}}",
    "data in braces": "name: mine\nsteps: {vanilla: {settings: {data: '{x}'}}}",
    "a trait above": "name: mine\nsteps: {steer: {settings: {vectors: {traits: [../evil]}}}}",
    "a recipe above": "name: mine\nstudies: {aside: {recipes: [../base]}}",
    "a model called ..": "name: mine\nmodels: {..: {template: chat}}",
    "a model with a slash": "name: mine\nmodels: {org/model: {template: chat}}",
    "a model with marks": 'name: mine\nmodels: {"llama 3.1 (8B), it\'s": {template: chat}}',
    "a model with a line": 'name: mine\nmodels: {"a\\nb": {template: chat}}',
    "a data set with a star": "name: mine\ndatasets: {'a*': {kind: sep}}",
    "a study with a space": "name: mine\nstudies: {a b: {}}",
    "a benchmark with a dot": "name: mine\nbenchmarks: {my.sep: {module: sep, dataset: sep}}",
    "a table with a slash": "name: mine\ntables: {a/b: {}}",
    "a figure with a brace": "name: mine\nfigures: {'{a}': {}}",
    "a claim with a plus": "name: mine\nclaims: {a+b: {}}",
    "a trait of dots": "name: mine\ntraits: {...: {}}",
    "a step called base+": "name: mine\nsteps: {base+x: {kind: vanilla}}",
    "a step called base": "name: mine\nsteps: {base: {kind: vanilla}}",
    "an analysis with a tab": 'name: mine\nanalyses: {"a\\tb": {}}',
    "a projection without a name": "name: mine\nprojections: {'': {}}",
    "a split with a slash": "name: mine\ndatasets: {x: {kind: sep, source: {path: x}, splits: {a/b: 1}}}",
    "a published file above": "name: mine\ntables: {aside_sep: {published: ../config}}",
    "a file of numbers above": "name: mine\ntables: {aside_sep: {published: [a]}}",
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_file_is_refused_with_its_name(tmp_path, text):
    message = refused(tmp_path, text)
    assert message.startswith(f"{tmp_path}/one.yaml"), message[:300]
    assert len(message) < 2000


@pytest.mark.parametrize(
    ("raw", "part"),
    [
        (b"name: mine\n# caf\xe9\n", "one.yaml:2: not valid UTF-8 (byte 0xe9)"),
        (b"\xff\xfen\x00", "one.yaml:1: not valid"),
    ],
)
def test_a_file_in_another_encoding_is_refused_with_its_line(tmp_path, raw, part):
    (tmp_path / "one.yaml").write_bytes(raw)
    with pytest.raises(ConfigurationError) as error:
        overlays.read([tmp_path / "one.yaml"], CONFIG)
    assert part in str(error.value)


def test_what_is_no_file_is_refused(tmp_path):
    for path in (tmp_path, tmp_path / "nothing.yaml", Path("/dev/zero")):
        with pytest.raises(ConfigurationError, match=str(path)):
            overlays.read([path], CONFIG)


def test_a_byte_order_mark_and_shared_parts_are_allowed(tmp_path):
    (tmp_path / "one.yaml").write_text(
        "\ufeffname: mine\nsteps:\n  vanilla: &s {settings: &t {training: {batch_size: 8}}}\n  ise: *s\n"
        "  aside: {settings: {<<: *t, alpha: 2.0}}\n",
        encoding="utf-8",
    )
    known = loading.load(overlays.read([tmp_path / "one.yaml"], CONFIG), CONFIG)
    assert known.step("mistral-7b-v0.3", "ise").settings.training.batch_size == 8
    assert known.step("mistral-7b-v0.3", "aside").settings.alpha == 2.0


def test_a_date_is_text(tmp_path):
    text = "name: mine\nmodels: {qwen2.5-7b: {description: 2024-01-01}}"
    assert loading.load(read(tmp_path, text), CONFIG).models["qwen2.5-7b"].description == "2024-01-01"


# --- which studies are run ---


def test_only_the_studies_that_run_names_are_there(tmp_path):
    catalogue = loading.load(read(tmp_path, "name: mine\nrun: [aside, abliteration]"), CONFIG)
    assert list(catalogue.studies) == ["aside", "abliteration"]
    assert "steering" in catalogue.left_out
    again = loading.load(read(tmp_path, "name: mine\nrun: [aside]", "name: mine\nrun: [abliteration]"), CONFIG)
    assert list(again.studies) == ["abliteration"], "the last file's list replaces the one before"
    assert not loading.load(read(tmp_path, "name: mine"), CONFIG).left_out


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("run: [asid]", 'one.yaml:2, run.0: there is no study "asid". Did you mean "aside"?'),
        ("run: aside", "one.yaml:2, run: expected a list of studies"),
        ("run: []", "one.yaml:2, run: expected a list of studies"),
        ("run: [[aside]]", "one.yaml:2, run.0: there is no study"),
        ("run: [steering]", "which `run` leaves out (steering). Add it to `run`"),
    ],
)
def test_what_cannot_be_run_is_told(tmp_path, text, part):
    assert part in refused(tmp_path, f"name: mine\n{text}")


# --- the command line ---


@pytest.mark.parametrize(
    "arguments",
    ["-n all", "--configfile one.yaml two.yaml -- x/y", "--configfile one.yaml -c2 x/y", "-- --configfile x/y", "x/y"],
)
def test_a_command_line_that_names_its_files_is_let_through(tmp_path, monkeypatch, arguments):
    read(tmp_path, "name: mine", "name: mine")
    monkeypatch.chdir(tmp_path)
    overlays.check_arguments(arguments.split())


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ("--configfile one.yaml x/y -c2", "before that: --configfile one.yaml -- x/y"),
        ("--configfiles one.yaml claims table_aside_sep", "--configfile one.yaml -- claims table_aside_sep"),
        ("--configfile one.yaml results/scores.json", "--configfile one.yaml -- results/scores.json"),
        ("--configfile=on.yaml", 'Did you mean "one.yaml"?'),
        ("--configfile x/y", 'There is no file "x/y"'),
        ("--configfile two.yaml", "two.yaml:2"),
    ],
)
def test_a_target_that_is_read_as_a_configuration_is_told(tmp_path, monkeypatch, arguments, part):
    (tmp_path / "one.yaml").write_text("name: mine")
    (tmp_path / "two.yaml").write_text("- a\n- b: c: d")
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "scores.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigurationError) as error:
        overlays.check_arguments(arguments.split())
    assert part in str(error.value)


def test_shares_that_are_more_than_everything_are_told(tmp_path):
    text = "name: mine\ndatasets: {own: {kind: sep, source: {path: x}, splits: {train: 0.9, test: 0.3}}}"
    assert "the shares of the splits add up to 1.2; all records together are 1.0" in refused(tmp_path, text)
