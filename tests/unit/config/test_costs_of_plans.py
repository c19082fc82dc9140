"""Wall time on so many GPUs, disk over time, downloads, judges, and what to run first."""

from __future__ import annotations

import random

import pytest
from rich.console import Console
from test_plan import loaded

from bulwark.config.costs import first, graph, storage, tables
from bulwark.config.costs.estimates import Estimate
from bulwark.config.costs.graph import Job
from bulwark.config.costs.schedule import schedule
from bulwark.errors import BulwarkError

MODEL = "llama3-8b-instruct"
WEIGHTS = 8.03e9 * 2


def job(hours: float, needs=(), gpus: int = 1, rule: str = "apply_step", threads: int = 4, **given) -> Job:
    wildcards = {"model": MODEL, "recipe": "sft", "seed": "0"} | given
    return Job(rule, wildcards, tuple(needs), (), (), gpus, threads, Estimate(hours, "guessed"))


@pytest.fixture(scope="module")
def papers():
    return loaded()


def test_a_chain_takes_its_sum_and_jobs_beside_one_another_their_share():
    assert schedule([job(1.0), job(2.0, [0]), job(3.0, [1])], 8).hours == 6.0
    assert schedule([job(1.0) for _ in range(8)], 4).hours == 2.0
    assert schedule([job(1.0, gpus=8), job(1.0), job(1.0)], 8).hours == 2.0
    assert schedule([], 8).hours == 0.0


def test_the_longest_way_starts_first():
    """In the order of the list the chain of 1 + 4 hours would wait for the others: 6 hours."""
    jobs = [job(1.0), job(1.0), job(1.0), job(4.0, [2])]
    planned = schedule(jobs, 2)
    assert (planned.hours, planned.critical) == (5.0, 5.0)
    assert planned.begins[2] == 0.0


def test_of_jobs_that_become_ready_the_longest_way_starts_first():
    """As the first ones do: three wait for the same job, and on the last of them another that takes longest."""
    jobs = [job(1.0), job(1.0, [0]), job(1.0, [0]), job(1.0, [0]), job(4.0, [3])]
    planned = schedule(jobs, 2)
    assert planned.begins[3] == 1.0
    assert (planned.hours, planned.critical) == (6.0, 6.0)


def test_what_needs_no_gpu_waits_for_none():
    jobs = [job(1.0), job(0.0, [0], gpus=0, rule="score_answers"), job(5.0, [1], gpus=1)]
    assert schedule(jobs, 1).hours == 6.0


def test_without_gpus_threads_are_counted():
    planned = schedule([job(1.0, gpus=0, threads=1) for _ in range(6)], 2)
    assert (planned.hours, planned.unit) == (3.0, "cores")
    assert schedule([job(1.0, gpus=0, threads=32)], 2).hours == 1.0, "a job gets no more cores than there are"


def test_more_gpus_than_there_are_is_an_error():
    with pytest.raises(BulwarkError, match=r"apply_step for .*sft.* needs 16 GPUs; --gpus says 8"):
        schedule([job(1.0, gpus=16)], 8)


@pytest.mark.parametrize("seed", range(20))
def test_a_schedule_keeps_to_what_bounds_it(seed):
    """No more GPUs than there are at any time, nothing before what it needs; between the lower bounds and Graham's."""
    chance, devices = random.Random(seed), 8
    jobs: list[Job] = []
    for place in range(60):
        needs = chance.sample(range(place), min(place, chance.randrange(3)))
        jobs.append(job(chance.choice([0.5, 1.0, 2.5]), needs, chance.choice([1, 1, 2, 8])))
    planned = schedule(jobs, devices)
    for place, each in enumerate(jobs):
        assert planned.ends[place] == planned.begins[place] + each.time.hours
        assert all(planned.ends[needed] <= planned.begins[place] for needed in each.needs)
    for now in planned.begins:
        running = [j.gpus for j, a, b in zip(jobs, planned.begins, planned.ends, strict=True) if a <= now < b]
        assert sum(running) <= devices
    total = sum(each.gpu_hours for each in jobs) / devices
    assert max(total, planned.critical) <= planned.hours <= sum(each.time.hours for each in jobs)
    lone = [job(each.time.hours, each.needs) for each in jobs]
    alone = schedule(lone, devices)
    assert alone.hours <= sum(each.time.hours for each in lone) / devices + (1 - 1 / devices) * alone.critical + 1e-9


def test_jobs_come_after_those_that_they_need():
    written = [
        {"rule": "make_table", "wildcards": {}, "needs": [2, 1], "outputs": ["t"]},
        {"rule": "download_dataset", "wildcards": {"dataset": "sep"}, "needs": [], "outputs": ["d"]},
        {"rule": "prepare_dataset", "wildcards": {"dataset": "sep", "split": "test"}, "needs": [1], "outputs": ["r"]},
    ]
    jobs = graph.jobs_of(loaded(), written)
    assert sorted(each.rule for each in jobs) == ["download_dataset", "make_table", "prepare_dataset"]
    for place, each in enumerate(jobs):
        assert all(needed < place for needed in each.needs)
    table = next(place for place, each in enumerate(jobs) if each.rule == "make_table")
    assert graph.reached(jobs, [table]) == {0, 1, 2}
    assert graph.makers(jobs)["t"] == table


def test_disk_is_weights_and_the_states_of_trainings_under_way(papers):
    """Two trainings in a row on 8 GPUs, then answers of the second; 12 bytes a parameter twice while one runs."""
    jobs = [
        job(1.0, gpus=8, recipe="max_entropy"),
        job(1.0, [0], gpus=8, recipe="max_entropy+relearn_bio_forget_2e-5"),
        job(1.0, [1], rule="generate_answers", recipe="x", benchmark="wmdp_bio"),
    ]
    found = storage.disk(papers, jobs, schedule(jobs, 8))
    answers, state = 1273 * 4_000, 2 * 12 * 8.03e9
    assert found.kept == pytest.approx(2 * WEIGHTS + answers)
    assert found.peak == pytest.approx(2 * WEIGHTS + state)
    assert found.removable == pytest.approx(2 * WEIGHTS)
    assert found.checkpoints == 2
    assert found.freed == pytest.approx(2 * WEIGHTS + state), "the first is read by the second, until that ends"
    apart = [jobs[0], job(1.0, gpus=8, recipe="min_posterior")]
    assert storage.disk(papers, apart, schedule(apart, 8)).freed == pytest.approx(WEIGHTS + state)
    assert storage.disk(papers, apart, schedule(apart, 16)).freed == pytest.approx(2 * (WEIGHTS + state))


def test_adapters_have_a_small_state_and_a_search_none(papers):
    lora = [job(1.0, gpus=8, recipe="relearn_bio_forget_2e-5_lora")]
    assert storage.disk(papers, lora, schedule(lora, 8)).peak < 1.3 * WEIGHTS
    search = [job(1.0, recipe="heretic")]
    assert storage.disk(papers, search, schedule(search, 8)).peak == pytest.approx(WEIGHTS)


def test_the_miniature_is_a_few_gigabytes_and_studies_that_an_overlay_leaves_out_are_not_proposed():
    """2.7 GB of checkpoints and 0.06 of answers were there after 2,400 of its jobs."""
    miniature = loaded("miniature.yaml")
    jobs = whole(miniature)
    found = storage.disk(miniature, jobs, schedule(jobs, 2))
    assert found.checkpoints > 300
    assert 1e9 < found.kept < 10e9
    assert not miniature.studies["aside_sweep"].models
    chosen = first.first(miniature, jobs)
    assert chosen.studies
    assert all(miniature.studies[name].models for name in chosen.studies)


def test_downloads_name_sizes_gates_and_files_of_the_users(papers):
    jobs = [
        Job("download_model", {"model": MODEL}, (), ()),
        Job("download_model", {"model": "qwen2.5-7b"}, (), ()),
        Job("download_dataset", {"dataset": "hackaprompt"}, (), ()),
        Job("prepare_dataset", {"dataset": "hackaprompt", "split": "test"}, (), ()),
        Job("prepare_dataset", {"dataset": "economics", "split": "train"}, (), ()),
    ]
    found = {each.name: each for each in storage.downloads(papers, jobs)}
    assert (found[MODEL].size, found[MODEL].gated) == (WEIGHTS, True)
    assert (found["qwen2.5-7b"].size, found["qwen2.5-7b"].gated) == (2 * 7.62e9, False)
    assert found["hackaprompt"].gated
    assert found["economics"].own
    assert next(iter(found)) == MODEL, "models first, the largest of them first"


def test_judges_are_asked_once_for_each_answer_and_twice_where_coherence_is_judged(papers):
    jobs = [
        job(0.0, gpus=0, rule="score_answers", benchmark="trait_evil"),
        job(0.0, gpus=0, rule="score_answers", benchmark="alpacaeval", seed="1"),
        job(0.0, gpus=0, rule="score_answers", benchmark="mmlu"),
    ]
    found = {each.judge: each for each in storage.judges(papers, jobs)}
    assert found["Qwen/Qwen3-235B-A22B"].questions == 20 * 10 * 2
    assert found["Qwen/Qwen3-235B-A22B"].price is None
    [compared] = [each for name, each in found.items() if name != "Qwen/Qwen3-235B-A22B"]
    assert compared.questions == 805
    assert compared.price == pytest.approx(805 * (1_000 * 30.0 + 100 * 60.0) / 1e6)


def whole(catalogue) -> list[Job]:
    """Every training and answer of the studies, as jobs without what comes before the trainings."""
    written, place = [], {}
    for study in catalogue.studies:
        for model, recipe, seed, benchmark in catalogue.cells(study):
            parts = () if recipe == "base" else tuple(recipe.split("+"))
            needs = []
            for count in range(1, len(parts) + 1):
                key = (model, "+".join(parts[:count]), seed)
                if key not in place:
                    place[key] = len(written)
                    given = {"model": model, "recipe": key[1], "seed": str(seed)}
                    rule = "choose_trial" if ".best" in parts[count - 1] else "apply_step"
                    written.append({"rule": rule, "wildcards": given, "needs": list(needs), "outputs": [str(key)]})
                needs = [place[key]]
            path = f"results/scores/{model}/{recipe}/seed{seed}/{benchmark}.json"
            if path in place:
                continue
            place[path] = len(written)
            given = {"model": model, "recipe": recipe, "seed": str(seed), "benchmark": benchmark}
            written.append({"rule": "generate_answers", "wildcards": given, "needs": needs, "outputs": [path]})
    return graph.jobs_of(catalogue, written)


@pytest.fixture(scope="module")
def all_jobs(papers):
    return whole(papers)


def test_what_to_run_first_costs_a_tenth_at_most_and_prefers_claims(papers, all_jobs):
    chosen = first.first(papers, all_jobs)
    total = sum(each.gpu_hours for each in all_jobs)
    hours = sum(all_jobs[place].gpu_hours for place in chosen.jobs)
    assert 0 < hours <= 0.1 * total
    assert papers.studies[next(iter(chosen.studies))].claims
    for study, (model, seed) in chosen.studies.items():
        assert seed == papers.studies[study].seeds[0]
        sizes = [papers.models[name].parameters for name in papers.studies[study].models]
        assert papers.models[model].parameters == min(sizes)
    overlaid = loaded(chosen.overlay)
    assert set(overlaid.studies) == set(chosen.studies)
    assert all(overlaid.studies[name].models == (model,) for name, (model, _) in chosen.studies.items())
    asked = whole(overlaid)
    assert sum(each.gpu_hours for each in asked) == pytest.approx(hours), "the overlay asks for what was promised"


def test_the_tables_add_up(papers, all_jobs):
    console = Console(width=110, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    tables.show(papers, all_jobs, 64, console)
    text = console.export_text()
    for part in ("by study", "by model", "by stage", "Wall time", "Disk", "What to run first", "name: first"):
        assert part in text
    total = sum(each.gpu_hours for each in all_jobs)
    assert text.count(f"{total:,.0f}") >= 3
    owner, alone = tables._studies(papers, all_jobs)
    assert len(owner) == len(all_jobs)
    assert {name for name in owner if name != tables.NO_STUDY} <= set(papers.studies)
    assert sum(name == "aside" for name in owner) == len(alone["aside"]), "the first study has all that it needs"
    told = tables.summary(papers, all_jobs)
    assert told.startswith(f"{len(all_jobs):,} jobs, {total:,.0f} GPU hours")


def test_nothing_left_to_do_is_said(papers):
    console = Console(width=110, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    tables.show(papers, [], 64, console)
    assert "Nothing is left to do" in console.export_text()
