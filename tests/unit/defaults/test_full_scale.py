"""What the studies at full scale come to: rows, optimizer steps, shares of a training, prompts of a trial, checkpoints.

The settings are pinned elsewhere; here is what follows from them together with the sizes of public data. Sources: ASIDE
is arXiv 2503.10566, PIS arXiv 2609.10142, TAR arXiv 2408.00761, persona vectors arXiv 2507.21509, TamperBench arXiv
2602.06911. What is "about" is so in its source.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from bulwark.config import recipes
from bulwark.data.readers import split_records
from defaults.reader import resolved

# Rows of sources that are divided by shares.
TOTAL = {
    "alpaca_cleaned": 51_756,  # ASIDE's code: 46,581 to train and 5,175 to validate
    "persona_clean": 20_000,  # about: persona vectors, App. D, 50 x 100 questions of two traits and twice that of one
    "toxic_dpo": 541,  # the data set's page
    "magpie": 98_000,  # about: TamperBench, of the filtered set
}
# Steps of trainings whose length is a number of epochs: by data set and batch.
BY_EPOCHS = {
    ("alpaca_cleaned", 64): (46_580, 2_184, "ASIDE, Table 2: three epochs; 46,581 rows are 728 batches of 64"),
    ("alpaca_cleaned", 128): (46_580, 1_092, "ASIDE, Table 2: three epochs of 364 batches"),
    ("alpaca_cleaned", 256): (46_580, 546, "ASIDE, Table 2: three epochs of 182 batches"),
    ("persona_mixture", 128): (19_840, 155, "PIS, Table 8: 615 to 620 micro-batches, four to an optimizer step"),
    ("toxic_dpo", 32): (530, 170, "TamperBench: ten epochs of 17 batches"),
    ("toxic_dpo", 16): (530, 340, "TamperBench: ten epochs of 34 batches"),
    ("magpie", 64): (77_420, 1_210, "RepNoise, arXiv 2405.14577: one epoch; about, as the data set is"),
}
# Steps of the others, by the beginning of their names; the longest counts.
BY_STEPS = {
    "sft_clean": (155, "ours: as sft, of which it is the control"),
    "max_entropy": (600, "TAR, App. G.1"),
    "min_posterior": (600, "TAR, App. G.1"),
    "llmu": (600, "TAR, App. G.1"),
    "random_map": (600, "TAR, App. C.3: the first stage"),
    "rmu": (250, "TAR, App. G.1; RMU, arXiv 2403.03218"),
    "tar": (750, "TAR, App. E.2: N"),
    "tar_refusal": (100, "TAR, App. E.2: N of the refusals"),
    "mlac": (750, "TAR, App. G.3: in TAR's place"),
    "sophon": (750, "TAR, App. G.3: in TAR's place"),
    "refusal_recovery": (100, "TAR, App. E.2: after TAR"),
    "refusal_sft": (600, "ours: as long as the defenses beside it"),
    "rerouting": (150, "circuit breakers, arXiv 2406.04313, App. A: 150 steps"),
    "r2d2": (2_000, "HarmBench, arXiv 2402.04249, Sec. 5"),
    "sdd": (500, "SDD, arXiv 2507.21182, Sec. 5"),
    "relearn": (500, "as TAR's adversaries; trials vary it as TamperBench's sweeps do"),
    "relearn_mixture": (500, "as relearn"),
    "relearn_lora": (500, "as relearn"),
    "relearn_refusal_tuned": (128, "ours; trials vary it as TamperBench's sweeps do"),
    "relearn_lora_high_rank": (500, "ours: as long as TAR's adversaries"),
    "relearn_bio": (500, "TAR, App. F: 500 steps"),
    "relearn_bio_forget_2e-5_1000": (1_000, "TAR's authors' grid, the row B3"),
    "relearn_cyber": (500, "TAR, App. F: 500 steps"),
    "relearn_after_text": (500, "ours: as long as TAR's adversaries"),
    "relearn_later_layers": (500, "ours: as long as TAR's adversaries"),
    "relearn_longer": (5_000, "TAR, versions 1 to 3: its longest adversaries"),
    "relearn_unrotate": (500, "ours: as long as TAR's adversaries"),
    "relearn_trait_dose": (500, "ours: as long as TAR's adversaries"),
}
PUBLISHED_STEPS = 620  # PIS, Table 8 and Fig. 2: micro-batches of a training
# Optimizer steps against the paper's micro-batches.
STEERED = {
    "pis": (50, 200, "PIS, Table 4: the paper's choice"),
    "pis_0": (0, 0, "PIS, Table 4"),
    "pis_50": (13, 50, "PIS, Table 4"),
    "pis_100": (25, 100, "PIS, Table 4"),
    "pis_400": (100, 400, "PIS, Table 4"),
    "early": (50, 200, "PIS, Table 8: withdrawn at 200"),
    "idp": (50, 200, "PIS, Table 2 names no boundary: ours, as early"),
    "idp_continuation": (50, 200, "PIS, Table 3 names no boundary: ours, as early"),
}
SIDES = ("harmful_directions", "harmless_directions", "harmful_search", "harmless_search")
PROMPTS = {
    "heretic": ((400, 400, 100, 100), "HERETIC, config.default.toml: train[:400], test[:100]"),
    "iconoclast": ((400, 400, 100, 100), "ICONOCLAST's code: as HERETIC"),
    "iconoclast_published": ((80, 240, 20, 64), "the technical details of its Llama-3.1-8B model"),
    "refusal_direction": ((128, 128, 32, 32), "Arditi et al., arXiv 2406.11717, Sec. 2.2"),
    "principal_directions": ((400, 400, 100, 100), "ours: as HERETIC"),
    "som_directions": ((400, 400, 100, 100), "ours: as HERETIC"),
    "gradient_edit": ((200, 200, 100, 100), "ours: half of HERETIC's for directions"),
}
# Checkpoints of a study, those that recipes go through on their way included, and their terabytes in bfloat16.
PARAMETERS = {  # billions, by the models' pages on the Hub
    "llama2-7b": 6.74, "llama2-7b-chat": 6.74, "llama2-13b": 13.02, "llama3-8b-instruct": 8.03, "llama3.1-8b": 8.03,
    "llama3.1-8b-instruct": 8.03, "mistral-7b-v0.3": 7.25, "qwen2.5-7b": 7.62, "qwen2.5-7b-instruct": 7.62,
    "qwen2.5-32b-instruct": 32.76, "qwen3-8b": 8.19, "gemma-2-2b-it": 2.61, "gemma-3-12b-it": 12.19,
    "phi-4-mini-instruct": 3.84,
}  # fmt: skip
CHECKPOINTS = {
    "aside": (18, 0.3),
    "aside_sweep": (51, 0.8),
    "aside_analyses": (15, 0.3),
    "aside_intervention": (10, 0.2),
    "aside_adaptive": (6, 0.1),
    "aside_defenses": (18, 0.3),
    "steering": (72, 2.5),
    "steering_analyses": (132, 8.6),
    "steering_detectors": (24, 0.4),
    "abliteration": (90, 1.0),
    "abliteration_heretic": (3, 0.1),
    "abliteration_arditi": (2, 0.0),
    "abliteration_defenses": (15, 0.2),
    "abliteration_red_team": (6, 0.1),
    "tar": (312, 5.0),
    "tar_cyber": (144, 2.3),
    "tar_chem": (0, 0.0),
    "tar_refusal": (90, 1.4),
    "tar_analyses": (219, 3.5),
    "tar_red_team": (410, 6.6),
    "refusal_red_team": (261, 4.2),
    "aside_red_team": (12, 0.2),
    "steering_red_team": (12, 0.2),
    "cross": (375, 6.0),
}


def every_step() -> Iterator[tuple[str, str, str, Any]]:
    """(study, model, step, its settings) of each step that a study takes; of trials the step that they are of."""
    found = set()
    for name, study in resolved().studies.items():
        for model in study.models:
            for recipe in study.every_recipe:
                for written in recipes.steps_of(recipe):
                    step = recipes.trial_of(recipes.snapshot_of(written)[0])[0].removesuffix(recipes.BEST)
                    if (name, model, step) not in found:
                        found.add((name, model, step))
                        yield name, model, step, resolved().step(model, step).settings


def rows_of(dataset: str) -> int | None:
    """How many rows the split `train` has; None where nothing says it and nothing follows from it."""
    entity = resolved().dataset(dataset)
    if not isinstance(entity.splits["train"], float):
        return entity.splits["train"] if isinstance(entity.splits["train"], int) else None
    if dataset not in TOTAL:
        return None
    return len(split_records(range(TOTAL[dataset]), entity.splits)["train"])


def asked(table: dict[str, Any], step: str) -> Any:
    """The row of a table whose name is the longest that the step's begins with."""
    names = [name for name in table if step == name or step.startswith(f"{name}_")]
    assert names, f"{step}: no row says how long it should be"
    return table[max(names, key=len)]


def test_every_training_is_as_long_as_its_source():
    wrong, used = [], set()
    for _, model, step, settings in every_step():
        training = getattr(settings, "training", None)
        if training is None:
            continue
        rows = rows_of(settings.data)
        if training.max_steps is None:
            place = settings.data, training.batch_size
            used.add(place)
            if (expected := BY_EPOCHS.get(place)) is None or (rows, training.total_steps(rows)) != expected[:2]:
                wrong.append(f"{step} on {model}: {rows} rows, {training.epochs} epochs of {training.batch_size}")
        elif training.max_steps != asked(BY_STEPS, step)[0]:
            wrong.append(f"{step} on {model}: {training.max_steps} steps, {asked(BY_STEPS, step)}")
    assert not wrong, "\n".join(wrong)
    assert used == BY_EPOCHS.keys()


def test_the_control_sees_as_many_steps_as_what_it_is_a_control_of():
    for model in ("qwen2.5-32b-instruct", "qwen2.5-7b-instruct"):
        sft, clean = (resolved().step(model, step).settings for step in ("sft", "sft_clean"))
        assert clean.training.total_steps(rows_of("persona_clean")) == sft.training.total_steps(rows_of(sft.data))
        assert clean.training.total_steps(1) * clean.training.batch_size < 1.2 * rows_of("persona_clean")


@pytest.mark.parametrize("step", STEERED)
def test_what_begins_or_ends_within_a_training_does_so_at_the_papers_share(step):
    ours, theirs, _ = STEERED[step]
    for model in {model for _, model, name, _ in every_step() if name == step}:
        settings = resolved().step(model, step).settings
        total = settings.training.total_steps(rows_of(settings.data))
        if step.startswith("idp"):
            found = getattr(settings, "preservation", None) or settings.continuation
            assert found.steps(total) == ours
        else:
            schedule = settings.schedule
            assert (schedule.withdraw_at if step == "early" else schedule.onset) == ours
            assert schedule.over(total, 20.0).total == total
        assert ours / total == pytest.approx(theirs / PUBLISHED_STEPS, abs=0.005)


def test_the_windows_of_an_analysis_are_over_before_what_is_withdrawn_ends():
    for model in {model for _, model, name, _ in every_step() if name == "early"}:
        settings = resolved().step(model, "early").settings
        total = settings.training.total_steps(rows_of(settings.data))
        (early_from, early_to), (late_from, _) = (settings.analysis.windows[name] for name in ("early", "late"))
        assert 0 < round(early_from * total) < round(early_to * total) <= settings.schedule.withdraw_at
        assert round(late_from * total) > settings.schedule.withdraw_at


def test_attacks_on_refusals_read_as_many_prompts_as_their_authors():
    for _, model, step, settings in every_step():
        if hasattr(settings, "prompts"):
            counts, source = asked(PROMPTS, step)
            assert settings.prompts.counts == dict(zip(SIDES, counts, strict=True)), (step, model, source)


def test_a_model_is_asked_by_attacks_as_by_the_benchmarks_that_report_on_them():
    """System turn and the beginning of the response; and the report is of prompts that these attacks have not seen."""
    catalogue = resolved()
    for name, model, step, settings in every_step():
        if not hasattr(settings, "prompts"):
            continue
        prompts = settings.prompts
        read = {f"{prompts.harmful}/{split}" for split in (prompts.directions, prompts.search)}
        for benchmark in {"refusal", "strongreject_rubric", "refusal_probe"} & {*catalogue.studies[name].benchmarks}:
            report = catalogue.benchmark(model, benchmark).settings
            assert report.system_prompt == prompts.system_prompt == "You are a helpful assistant.", (step, benchmark)
            assert report.response_prefix == prompts.response_prefix == "", (step, benchmark)
            # ICONOCLAST searches on JailbreakBench itself; for that attack `refusal` is no held-out number.
            if benchmark != "refusal_probe" and (step, benchmark) != ("iconoclast_published", "refusal"):
                assert read <= {*report.scoring.seen}, (step, benchmark)
        if "harmbench" in catalogue.studies[name].benchmarks:
            assert read <= {*catalogue.benchmark(model, "harmbench").settings.scoring.seen}, step


def test_checkpoints_and_their_bytes():
    found = {}
    for name, study in resolved().studies.items():
        made = {
            (model, "+".join(parts[:end]))
            for model in study.models
            for parts in map(recipes.steps_of, study.every_recipe)
            for end in range(1, len(parts) + 1)
        }
        for step, count in study.trials.items():
            if study.chooses(step):
                made |= {(model, f"{step}.{trial}") for model in study.models for trial in range(count)}
        size = sum(2 * PARAMETERS[model] for model, _ in made) * len(study.seeds) / 1000
        found[name] = (len(made) * len(study.seeds), round(size, 1))
    assert found == CHECKPOINTS
