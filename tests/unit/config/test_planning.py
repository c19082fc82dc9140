"""How long jobs are expected to take: guessed from the work, published, measured; consistent from model to model."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import pytest
from test_plan import loaded

from bulwark.config.costs import amounts, estimates
from bulwark.config.costs.estimates import Estimate
from bulwark.errors import ConfigurationError

GEMMA, SMALL, LLAMA, LARGE = "gemma-3-12b-it", "qwen2.5-7b-instruct", "llama3-8b-instruct", "qwen2.5-32b-instruct"


@pytest.fixture(scope="module")
def papers():
    return loaded()


@pytest.fixture(autouse=True)
def no_timings(tmp_path, monkeypatch):
    """What was measured lies below the working directory."""
    monkeypatch.chdir(tmp_path)
    estimates._timings.cache_clear()
    yield
    estimates._timings.cache_clear()


def by_size(catalogue, name: str = "") -> list[str]:
    """The papers' models, the smallest first; without those that do something else under `name`."""
    known = [model for model, entity in catalogue.models.items() if entity.parameters]
    return sorted(known, key=lambda model: (catalogue.models[model].parameters, model))


def test_answers_take_the_bandwidth_of_all_weights_for_every_token(papers):
    """18,320 answers, 32 at a time, 1,024 tokens each, of an H100's 3.35 TB/s the share that the notebooks reached."""
    seconds = 18_320 / 32 * 1_024 * 8.03e9 * 2 / (3.35e12 * 0.152)
    start = 120 + 8.03e9 * 2 / 1e9
    assert estimates.answers(papers, "llama3.1-8b", "sep").hours == pytest.approx((seconds + start) / 3600)
    # the notebooks of ASIDE's authors: 1,000 prompts of an 8B model in 16 min 47 s
    assert seconds / 18_320 * 1_000 == pytest.approx(16 * 60 + 47, rel=0.01)
    tenth = estimates.answers(papers, LLAMA, "mmlu").hours
    assert tenth == pytest.approx((0.1 * seconds + start) / 3600)


def test_a_training_takes_eight_flops_a_token_and_parameter_where_activations_are_recomputed(papers):
    """500 batches of 64 passages of 256 tokens, on eight cards of 989 TFLOP/s of which 15 % are reached."""
    flops = 8 * 8.03e9 * 500 * 64 * 256
    expected = (flops / (8 * 989e12 * 0.15) + 120 + 2 * 8.03) / 3600
    assert estimates.step(papers, LLAMA, "relearn_bio_forget_2e-5") == Estimate(pytest.approx(expected), "guessed")
    start = (120 + 2 * 8.03) / 3600
    longer = estimates.step(papers, LLAMA, "relearn_bio_forget_2e-5_1000").hours - start
    assert longer == pytest.approx(2 * (expected - start))
    adapters = estimates.step(papers, LLAMA, "relearn_bio_forget_2e-5_lora").hours - start
    assert adapters == pytest.approx(6 / 8 * (expected - start)), "frozen weights have no gradients"


def test_what_forgets_one_set_and_keeps_another_learns_from_both(papers):
    one = amounts.training_work(papers, papers.step(LLAMA, "refusal_recovery"))
    assert one == 100 * 64 * 1_000 * 8
    both = amounts.training_work(papers, papers.step(LLAMA, "max_entropy"))
    tokens = amounts.tokens_of(papers, "bio_retain_mix")
    assert tokens > 256
    assert both == 2 * 600 * 64 * 256 * 8


def test_tampering_counts_the_simulated_attacks(papers):
    """TAR: 64 batches of 32 and 16 gradients of resistance for each batch of 64, with its reference's forward pass."""
    long = amounts.training_work(papers, papers.step(LLAMA, "tar"))
    assert long == pytest.approx(750 * 64 * 256 * 6 * (4 / 3 + 64 * 32 / 64 + 64 / 4))
    short = amounts.training_work(papers, papers.step(LLAMA, "tar_short"))
    assert short / long == pytest.approx((4 / 3 + 8 + 4) / (4 / 3 + 32 + 16))


def test_a_search_counts_its_trials_and_prompts(papers):
    model = "llama3.1-8b-instruct"
    start = (120 + 2 * 8.03) / 3600
    whole = estimates.answers(papers, model, "sep").hours - start
    search = estimates.step(papers, model, "heretic").hours - start
    assert search == pytest.approx(whole * 200 * 100 * 100 / (18_320 * 1_024))
    # a closed form has no trials: its cost is of SEP's answers
    assert estimates.step(papers, model, "refusal_direction").hours - start == pytest.approx(0.1 * whole)


def test_no_model_takes_less_than_a_smaller_one(papers):
    """Of every benchmark and step that models do not define otherwise, as GPU hours beyond the start of each GPU."""
    models = by_size(papers)
    assert models.index(LARGE) == len(models) - 1
    for name, benchmark in papers.benchmarks.items():
        hours = [estimates.answers(papers, m, name).hours for m in models if m not in benchmark.models]
        assert hours == sorted(hours), name
    for name, step in papers.steps.items():
        work = [_beyond_the_start(papers, model, name) for model in models if model not in step.models]
        assert all(b >= a - 1e-9 for a, b in pairwise(work)), name


def _beyond_the_start(papers, model: str, step: str) -> float:
    needed = papers.resources(model, papers.step(model, step).stage)
    start = (120 + papers.models[model].parameters * 2 / 1e9) / 3600
    published = estimates.published.OF_KIND.get(papers.step(model, step).module)
    return needed.gpu * needed.nodes * (estimates.step(papers, model, step).hours - (0 if published else start))


def test_what_authors_say_is_expected_of_their_job_and_scales_to_others():
    ours, theirs = loaded(), loaded("name: a100\naccelerator: a100")
    assert estimates.step(theirs, LLAMA, "tar") == Estimate(pytest.approx(18.0), "published")
    here = estimates.step(ours, LLAMA, "tar")
    assert here.origin == "guessed"
    assert here.hours == pytest.approx(18.0 * 312 / 989, rel=0.02), (
        "the start apart, as much less as the card is faster"
    )
    assert estimates.step(ours, "llama2-13b", "aside") == Estimate(pytest.approx(3.0), "published")
    assert estimates.step(ours, "llama2-7b", "aside").hours == pytest.approx(3.0 * 6.74 / 13.0, rel=0.05)
    assert estimates.step(ours, "llama2-7b", "aside").origin == "guessed"
    kept = estimates.step(theirs, LLAMA, "tar_short")
    assert kept.hours == pytest.approx(18.0 * (4 / 3 + 8 + 4) / (4 / 3 + 32 + 16), rel=0.02)
    assert kept.origin == "guessed"


def test_every_published_time_is_of_a_step_and_a_model_that_there_are(papers):
    for kind, known in estimates.published.OF_KIND.items():
        step = papers.step(known.model, known.step)
        assert step.module in estimates.published.OF_KIND, kind
        assert known.work == pytest.approx(amounts.training_work(papers, step)), kind
        assert known.source


def test_an_overlay_that_cuts_a_step_down_cuts_its_time_as_much():
    """The published time is of what the authors did, not of what is left of it; the start is not cut."""
    whole = estimates.step(loaded(), "llama2-13b", "aside").hours
    cut = "name: cut\nsteps: {aside: {settings: {training: {epochs: 1.0}}}}"
    assert estimates.step(loaded(cut), "llama2-13b", "aside").hours == pytest.approx(whole / 3, rel=0.1)


def written(path: str, *seconds: float) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    rows = "".join(f"{value}\t0:00:00\t1.0\n" for value in seconds)
    Path(path).write_text(f"s\th:m:s\tmax_rss\n{rows}", encoding="utf-8")


def test_what_was_measured_here_comes_first_the_median_of_it_and_the_longest_for_the_limit(papers):
    written(f"results/timings/apply_step/{LLAMA}/base+relearn_bio_forget_2e-5/seed0.tsv", 3600.0)
    written(f"results/timings/apply_step/{LLAMA}/max_entropy+relearn_bio_forget_2e-5/seed1.tsv", 7200.0)
    written(f"results/timings/apply_step/{LLAMA}/rmu+relearn_bio_forget_2e-5/seed0.tsv", 3000.0)
    written(f"results/timings/apply_step/{LLAMA}/max_entropy/seed1.tsv", 100.0)
    written(f"results/timings/apply_step/{SMALL}/relearn_bio_forget_2e-5/seed1.tsv", 9999.0)
    written(f"results/timings/generate_answers/{LLAMA}/base/seed0/mmlu.tsv", 1800.0)
    found = estimates.step(papers, LLAMA, "relearn_bio_forget_2e-5")
    assert found == Estimate(1.0, "measured", 2.0)
    assert found.minutes(8) == 180, "half as much again as the longest"
    assert estimates.step(papers, LLAMA, "relearn_bio_forget_4e-5").origin == "guessed"
    assert estimates.step(papers, LLAMA, "max_entropy") == Estimate(100 / 3600, "measured", 100 / 3600)
    assert estimates.answers(papers, LLAMA, "mmlu") == Estimate(0.5, "measured", 0.5)
    assert estimates.answers(papers, LLAMA, "wmdp_bio").origin == "guessed"
    # what shares a job is decided before, and stays
    assert estimates.planned(papers, LLAMA, "relearn_bio_forget_2e-5").origin == "guessed"


@pytest.mark.parametrize("content", ["", "s\th:m:s\n", "s\th:m:s\nnever\t-\n", "no table"])
def test_a_timing_that_cannot_be_read_counts_nothing(papers, content):
    path = Path(f"results/timings/generate_answers/{LLAMA}/base/seed0/mmlu.tsv")
    path.parent.mkdir(parents=True)
    path.write_text(content, encoding="utf-8")
    assert estimates.answers(papers, LLAMA, "mmlu").origin == "guessed"


def test_hours_that_a_model_states_are_believed():
    stated = loaded(
        f"name: stated\nmodels: {{{LLAMA}: {{resources: {{train: {{hours: 7.0}}, generate: {{hours: 2.0}}}}}}}}"
    )
    assert estimates.step(stated, LLAMA, "relearn_bio_forget_2e-5") == Estimate(7.0, "guessed")
    assert estimates.answers(stated, LLAMA, "mmlu").hours == pytest.approx(0.2)


def test_a_model_of_which_nothing_is_known_is_an_error_that_says_what_to_write(tmp_path):
    text = """
name: mine
models:
  mine: {source: {hub: a/b, revision: c}, template: chat, resources: {train: {mem_gb: 4}, generate: {mem_gb: 4}}}
"""
    with pytest.raises(ConfigurationError, match=r"overlay\.yaml:4.*parameters: 8\.0e\+9") as refused:
        estimates.answers(loaded(text), "mine", "sep")
    assert "hours" in str(refused.value)


def test_a_folder_of_the_users_is_as_large_as_its_weights(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").write_bytes(b"0" * 8_000)
    text = """
name: mine
models:
  mine: {source: {path: model}, template: chat, resources: {train: {mem_gb: 4}, generate: {mem_gb: 4, threads: 2}}}
"""
    known = loaded(text)
    assert estimates.parameters(known, "mine") == 2_000  # of four bytes
    seconds = 18_320 / 32 * 1_024 * 8_000 / (2 * 4e9 * 0.152)
    assert estimates.answers(known, "mine", "sep").hours == pytest.approx((120 + seconds) / 3600, rel=1e-4)


def test_an_accelerator_that_is_not_known_is_named():
    with pytest.raises(ConfigurationError, match=r'overlay\.yaml:2, accelerator: .*"h1000".*Did you mean "h100"'):
        loaded("name: mine\naccelerator: h1000")


def test_slurm_gives_half_as_much_again_and_no_less_than_a_start_needs():
    assert Estimate(2.0, "guessed").minutes(8) == 180
    assert Estimate(0.01, "guessed").minutes(1) == 30
    assert Estimate(0.01, "guessed").minutes(0) == 5
    assert Estimate(math.pi, "measured").minutes(0) == round(90 * math.pi)


def test_parts_of_a_job_are_known_as_surely_as_the_least_certain():
    parts = [Estimate(1.0, "measured"), Estimate(2.0, "published")]
    assert estimates.together(parts) == Estimate(3.0, "published", 3.0)
    assert estimates.together([Estimate(1.0, "measured", 4.0), Estimate(2.0, "guessed")]).longest == 6.0
    assert estimates.together([*parts, Estimate(0.5, "guessed")]).origin == "guessed"


def test_rows_and_tokens_are_those_that_the_files_of_data_sets_name(papers):
    assert amounts.rows_of(papers, "alpaca_cleaned", "train") == pytest.approx(46_581, abs=1)
    assert amounts.rows_of(papers, "toxic_dpo", "train") == pytest.approx(530, abs=1)
    assert amounts.rows_of(papers, "sep", "test") == 9160
    assert amounts.rows_of(papers, "hh_refusals", "train") == amounts.ROWS
    mixed = amounts.rows_of(papers, "bio_forget", "train")
    parts = [amounts.rows_of(papers, name, "train") for name in ("pile_bio_forget", "camel_bio_forget")]
    assert mixed == sum(parts)
