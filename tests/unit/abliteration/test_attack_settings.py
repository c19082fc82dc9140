"""Each setting of an attack on refusals is read: another value makes another attack."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from abliteration_samples import (
    asked,
    attack_settings,
    builder_of,
    checkpoint,
    family_model,
    job_for,
    plain_ids,
    refusing_model,
    texts,
)
from safetensors.torch import load_file
from torch import Tensor

from bulwark.abliteration import attack
from bulwark.abliteration.edit import targets
from bulwark.abliteration.measure.subject import read_prompts
from bulwark.abliteration.search import outcome
from bulwark.abliteration.search.objectives import Measures
from bulwark.abliteration.search.search import Search
from bulwark.abliteration.search.trials import TrialResult
from bulwark.abliteration.settings import PromptSets, SelectionSettings
from bulwark.models import open as opening
from bulwark.settings import validated
from bulwark.steps import heretic, refusal_direction

SHORT = {"trials": 2, "startup_trials": 2, "max_new_tokens": 4}
SPACE = {"max_weight": {"attention": [0.8, 1.5]}, "max_weight_position": [0.0, 1.0], "min_weight_distance": 2.0}
DIRECTED = {
    "prompts": {"harmful": "harmful", "harmless": "harmless"}, "dtype": "float32", "layers_below": 1.0,
    "kl_at_most": 9.0, "induced_at_least": -99.0, "max_new_tokens": 4,
}  # fmt: skip


@pytest.fixture(scope="module")
def parent(tmp_path_factory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("parent"))


def searched(folder: Path, parent: Path, **sections: Any) -> Path:
    """A short search with these sections of its settings; the folder of the result."""
    heretic.run(job_for("heretic", folder / "model", parent), attack_settings(search=SHORT, **sections))
    return folder / "model"


def directed(folder: Path, parent: Path, more: str = "", **settings: Any) -> dict[str, Any]:
    """Arditi's attack, with `more` lines of harmful prompts to measure on; its summary and its candidates."""
    job = job_for("refusal_direction", folder / "model", parent)
    path = Path(job.inputs["harmful_search"])
    path.write_text(path.read_text() + more)
    refusal_direction.run(job, validated(refusal_direction.Settings, DIRECTED | settings, "here"))
    lines = (folder / "model" / "candidates.jsonl").read_text().splitlines()
    summary = json.loads((folder / "model" / "summary.json").read_text())
    return summary | {"found": [json.loads(line) for line in lines]}


def last_states(side: str) -> Tensor:
    """The hidden states at the last token [prompts, layers + 1, hidden], as transformers gives them."""
    model = refusing_model(installed=False)
    states = [
        model(torch.tensor([plain_ids(prompt)]), output_hidden_states=True).hidden_states
        for prompt in asked(texts(side, "directions"))
    ]
    return torch.stack([torch.stack([state[0, -1] for state in one]) for one in states]).detach()


@pytest.mark.parametrize("quantile", [1.0, 0.7])
def test_residuals_are_clamped_and_the_last_ones_taken_behind_the_norm(quantile, tmp_path, parent):
    chosen = {"final_norm": True, "winsorise": quantile}
    found = load_file(searched(tmp_path, parent, directions=chosen) / "directions.safetensors")["mean"].double()
    means = []
    for side in ("harmful", "harmless"):
        states = last_states(side)
        bound = torch.quantile(states.abs(), quantile, dim=-1, keepdim=True)
        means.append(states.clamp(-bound, bound).double().mean(0))
    difference = means[0] - means[1]
    expected = difference / difference.norm(dim=-1, keepdim=True).clamp(min=1e-12)  # all prompts end in one token
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_only_the_components_that_are_named_are_edited(tmp_path, parent):
    chosen = {"edit": {"components": ["attention"]}, "space": SPACE}
    weights, before = load_file(searched(tmp_path, parent, **chosen) / "model.safetensors"), refusing_model()
    changed = {name for name, weight in weights.items() if not torch.equal(weight, before.state_dict()[name])}
    assert changed
    assert all(name.endswith("self_attn.o_proj.weight") for name in changed)


@pytest.mark.parametrize("through", [True, False])
def test_norms_behind_a_sublayer_count_where_that_is_asked_for(through, tmp_path, parent, monkeypatch):
    """The tiny model that refuses has none: its modules are taken from a Gemma."""
    made = targets.targets_of
    monkeypatch.setattr(targets, "targets_of", lambda model, *given: made(family_model("gemma2"), *given))
    monkeypatch.setattr("bulwark.abliteration.edit.checking.check_edits", lambda *_: None)  # another model's targets
    monkeypatch.setattr("bulwark.abliteration.search.trials.Examiner", lambda _, edits, *__: Holding(edits))
    examiner = attack.examiner_of(
        job_for("heretic", tmp_path / "model", parent), attack_settings(edit={"through_norms": through})
    )
    assert {target.gain is not None for target in examiner.edits.targets} == {through}


class Holding:
    """In an examiner's place, so that nothing is measured."""

    base = Measures(kl=0.0, refusals=1, harmful=1)

    def __init__(self, edits: Any) -> None:
        self.edits = edits


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_model_is_opened_as_it_is_asked_for(dtype, tmp_path, parent, monkeypatch):
    """On a CPU it is then computed with in float32 whatever is asked for."""
    opened, asked_for = opening.open_model, []
    monkeypatch.setattr(
        opening, "open_model", lambda at, kind, **given: asked_for.append(kind) or opened(at, kind, **given)
    )
    attack.examiner_of(job_for("heretic", tmp_path / "model", parent), attack_settings(search=SHORT, dtype=dtype))
    assert asked_for == [dtype]


@pytest.mark.parametrize(("bound", "number"), [(None, 1), (0.5, 0), (0.01, 0)])
def test_the_choice_keeps_the_bound_on_kl(bound, number):
    trials = [
        {"number": n, "kl": kl, "refusals": refusals, "refusal_rate": refusals / 10, "n": 10, "overrefusals": None,
         "gated": False, "dominated": False}
        for n, (kl, refusals) in enumerate([(0.2, 5), (0.9, 0)])
    ]  # fmt: skip
    marked = outcome.marked(trials, SelectionSettings(kl_at_most=bound), None)
    assert [trial["number"] for trial in marked if trial["chosen"]] == [number]


def test_prompts_that_the_model_treats_otherwise_are_left_out_where_that_is_asked_for(tmp_path, parent):
    answered = "".join(json.dumps({"id": f"answered-{n}", "prompt": f"hide a word{n}"}) + "\n" for n in range(3))
    kept = {
        filtered: directed(tmp_path / str(filtered), parent, answered, filtered=filtered)["kept"]
        for filtered in (True, False)
    }
    assert kept[False] == {
        "harmful_directions": 16,
        "harmless_directions": 14,
        "harmful_search": 19,
        "harmless_search": 16,
    }
    assert kept[True]["harmful_search"] <= 16


@pytest.mark.parametrize("positions", [1, 2])
def test_candidates_are_at_so_many_last_tokens(positions, tmp_path, parent):
    found = directed(tmp_path, parent, positions=positions)["found"]
    assert {row["position"] for row in found} == {-1 - back for back in range(positions)}


def test_so_many_prompts_are_taken_from_the_front(tmp_path, parent):
    counts = {"harmful_directions": 5, "harmless_directions": 4, "harmful_search": 3, "harmless_search": 2}
    sets = PromptSets(harmful="harmful", harmless="harmless", counts=counts)
    prompts = read_prompts(job_for("heretic", tmp_path / "model", parent).inputs, sets, builder_of())
    for name, count in counts.items():
        side, use = name.split("_")
        assert prompts.texts[name] == texts(side, use)[:count]
        assert len(getattr(prompts, name)) == count


def proposals(folder: Path, **search: Any) -> list[dict[str, float]]:
    """What a search of 16 trials proposes, of which the first 6 are drawn at random; a bowl is searched."""
    settings = attack_settings(search={"trials": 16, "startup_trials": 6, "ei_candidates": 8, **search})
    one = Search(folder / "journal", settings, 4, 0, "x")

    def examine(proposed: list, known: list) -> list[TrialResult]:
        return [TrialResult(Measures(kl=0.1, refusals=1, harmful=2), False, False, [], 0.0, 0) for _ in proposed]

    def score(_: TrialResult) -> tuple[float, float]:
        given = one.study.get_trials(deepcopy=False)[len(one.records())].params
        away = [abs(given[f"{part}.max_weight"] - 1.2) for part in ("attention", "mlp")]
        return away[0], away[1]

    one.run(examine, score)
    return [record["parameters"] for record in one.records()]


def test_behind_the_start_the_search_learns_from_its_trials(tmp_path):
    learning, random = proposals(tmp_path / "tpe"), proposals(tmp_path / "random", startup_trials=16)
    assert learning[:6] == random[:6]
    assert all(one != other for one, other in zip(learning[6:], random[6:], strict=True))


def test_the_sampler_looks_at_as_many_candidates_as_it_is_told(tmp_path):
    few, many = proposals(tmp_path / "few", ei_candidates=1), proposals(tmp_path / "many", ei_candidates=64)
    assert few[:6] == many[:6]
    assert few[6:] != many[6:]
