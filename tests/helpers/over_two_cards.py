"""Everything that asks a model for something, once on the CPU and once spread over two cards; prints both as JSON.

Run as a program, because two_cards takes a whole process: `python tests/helpers/over_two_cards.py FOLDER KIND…`. A kind
is "passes", or that of an attack, which goes from a checkpoint to the exported one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ["HF_DEACTIVATE_ASYNC_LOAD"] = "1"  # other threads would not see the cards

import torch
from abliteration_samples import asked, checkpoint, job_for, texts
from safetensors.torch import load_file
from two_cards import CARD, Held, cards

from bulwark.abliteration import attack, optimised
from bulwark.abliteration.edit import export
from bulwark.interpretability.attention import attention_to_parts
from bulwark.interpretability.states import over_tokens
from bulwark.models import checkpoints
from bulwark.models.decoding import Decoding
from bulwark.models.likelihoods import Continuation
from bulwark.models.open import LanguageModel, open_model
from bulwark.models.placing.loading import Loading
from bulwark.settings import validated
from bulwark.steering.intervention import steer_generation
from bulwark.steering.vectors.extraction import Example, pooled_sums
from bulwark.steps import module_of

PROMPTS = {"harmful": "harmful", "harmless": "harmless"}
SEARCH = {"trials": 6, "startup_trials": 3, "ei_candidates": 4, "trials_per_batch": 3, "max_new_tokens": 6}
SPACE = {
    "max_weight": {"attention": [0.8, 1.5], "mlp": [0.2, 1.5]},
    "max_weight_position": [0.0, 1.0],
    "min_weight_distance": 2.0,
}
SETTINGS: dict[str, dict[str, Any]] = {
    "heretic": {
        "space": SPACE,
        "search": SEARCH,
        "edit": {"normalization": "none"},
        "directions": {"final_norm": True},
    },
    "refusal_direction": {"layers_below": 1.0, "kl_at_most": 0.5, "induced_at_least": -20.0, "max_new_tokens": 6},
    "gradient_edit": {"rank": 2, "rounds": 1, "steps": 6, "batch_size": 4, "max_new_tokens": 6},
}


def passes(subject: LanguageModel) -> dict[str, Any]:
    """What each kind of pass gives, as numbers."""
    model, pad = subject.model, subject.builder.pad_id
    prompts = asked(texts("harmful", "search"))
    keyed = [(str(number), prompt) for number, prompt in enumerate(prompts)]
    states: list[list[float]] = []
    over_tokens(model, prompts, [(0, 2), (3, 1)], lambda taken: states.extend(
        rows.flatten().tolist() for rows in taken.states.values()), pad)  # fmt: skip
    requests = [Continuation(str(n), prompt.ids, [5, 6][: 1 + n % 2]) for n, prompt in enumerate(prompts)]
    vector = torch.linspace(-1.0, 1.0, model.config.hidden_size)
    last = len(model.model.layers) - 1
    with steer_generation(model, last, vector, 2.0):
        steered = subject.generate(keyed, Decoding(max_new_tokens=4))
    answered = [
        dataclasses.replace(prompt, labels=[-100] * (len(prompt.ids) - 1) + [prompt.ids[-1]]) for prompt in prompts
    ]
    pooled, _ = pooled_sums(model, [Example(prompt, n % 2, 0) for n, prompt in enumerate(answered)], pad)
    return {
        "answers": [answer.response for answer in subject.generate(keyed, Decoding(max_new_tokens=6))],
        "steered": [answer.response for answer in steered],
        "likelihoods": [one.value for one in subject.log_likelihoods(requests)],
        "residuals": subject.residuals(prompts, final_norm=True).mean.flatten().tolist(),
        "states": states,
        "attention": attention_to_parts(model, prompts, [{"first": [0]} for _ in prompts], pad),
        "pooled": pooled.flatten().tolist(),
        "devices": sorted({str(weight.device) for weight in model.parameters()}),
        "on": {
            name: str(weight.device) for name, weight in model.named_parameters() if "down" in name or "emb" in name
        },
    }


def attacked(kind: str, folder: Path, parent: Path, loading: dict[str, Any]) -> dict[str, Any]:
    """The exported weights of an attack and what its summary says."""
    step = module_of(kind)
    job = dataclasses.replace(job_for(kind, folder, parent), loading=loading)
    settings = validated(step.Settings, {"prompts": PROMPTS, "dtype": "float32"} | SETTINGS[kind], "here")
    if kind == "gradient_edit":  # its loss alone: PyTorch does not differentiate on cards
        examiner = attack.examiner_of(job, settings)
        sides = optimised.refused(examiner, settings, None), optimised.complied(examiner)
        factors = optimised.drawn(examiner, 2, 0)
        for factor in factors.values():
            factor.a.data.add_(0.1)
        return {"loss": float(optimised.objective(examiner, factors, *sides, settings).detach())}
    told = step.run(job, settings)
    weights = load_file(folder / "model.safetensors")
    summary = json.loads((folder / "summary.json").read_text())
    return {
        "weights": {name: weight.double().sum().item() for name, weight in weights.items()},
        "exported": told["abliteration"]["exported"],
        "chosen": {key: summary["chosen"].get(key) for key in ("number", "kl", "refusals", "layer", "refusal_score")},
    }


def work(what: str, folder: Path, parent: Path, loading: dict[str, Any]) -> dict[str, Any]:
    if what != "passes":
        return attacked(what, folder, parent, loading)
    return passes(open_model(parent, "float32", loading=Loading(**loading)))


@contextlib.contextmanager
def gpus_are_cards() -> Iterator[None]:
    """Within it a job finds two cards where it looks for GPUs."""
    checkpoints.device_and_dtype = lambda dtype: (CARD, "float32")  # type: ignore[assignment]
    torch.accelerator.device_count = lambda: 2  # type: ignore[assignment]
    saved = checkpoints.save_model

    def save(model: Any, tokenizer: Any, folder: Any, state_dict: Any = None) -> None:
        held = model.state_dict() if state_dict is None else state_dict
        saved(model, tokenizer, folder, {name: one.raw if isinstance(one, Held) else one for name, one in held.items()})

    checkpoints.save_model = save
    export.write_adapter = lambda *_: None  # PEFT asks for addresses in memory, which a tensor here has none of
    with cards():
        yield


def main() -> None:
    folder, kinds = Path(sys.argv[1]), sys.argv[2:]
    parent = checkpoint(folder / "parent")
    found = {"cpu": {what: work(what, folder / "cpu" / what / "model", parent, {}) for what in kinds}}
    with gpus_are_cards():
        found["cards"] = {what: work(what, folder / "cards" / what / "model", parent, {"gpus": 2}) for what in kinds}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
