"""Two processes on the CPU immunise as one does, at every ZeRO stage, and go on bit for bit after an interruption."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from stopped_samples import resumed

GCG = {"steps": 2, "search_width": 6, "top_k": 4, "suffix": "! !"}
POOL = {"pool": 6, "cases_per_step": 3, "refusal": None, "reset_every": 2, "reset_share": 0.5}
KINDS = {
    "r2d2": {"cases": "c", "gcg": GCG} | POOL,
    "booster": {"attack": "x"},
    "vaccine": {"rho": 0.5},
    "t_vaccine": {"targeted": {"harmful": "x", "layers": 1, "redraw_every": 1, "measure_every": 2}},
    "lisa": {"alignment": "x", "alignment_steps": 1, "user_steps": 1, "proximal_after": 0.0, "rho": 0.7},
}
STAGES = {
    "r2d2": [(0, "float32"), (3, "float32")],
    "booster": [(2, "float32"), (3, "float32"), (1, "bfloat16")],
    "vaccine": [(3, "float32")],
    "t_vaccine": [(2, "float32")],
    "lisa": [(3, "float32"), (1, "bfloat16")],
}
TRAININGS = {
    f"{name}-{stage}-{precision}": {
        "kind": name.removeprefix("t_"),
        "given": given,
        "settings": {"zero_stage": stage, "precision": precision, "max_steps": 3, "micro_batch_size": 1},
    }
    for name, given in KINDS.items()
    for stage, precision in STAGES[name]
}
RESUMED = resumed(TRAININGS, ["r2d2-3-float32", "lisa-3-float32"], at=2)

PROGRAM = "immunised_ranks"
# All trainings with two ranks and with one; the resumed ones with two only.
PLANS = {
    ranks: [{"name": name} | training for name, training in trainings.items()]
    for ranks, trainings in ((1, TRAININGS), (2, TRAININGS | RESUMED))
}


@pytest.fixture(scope="module")
def folder(launched: Path) -> Path:
    return launched / PROGRAM


def weights(folder: Path, name: str, ranks: int) -> dict[str, torch.Tensor]:
    return torch.load(folder / f"{name}_{ranks}" / "weights.pt", weights_only=True)


@pytest.mark.parametrize("name", TRAININGS)
def test_two_ranks_end_where_one_ends(name, folder):
    tolerance = 1e-5 if "float32" in name else 2e-2
    torch.testing.assert_close(weights(folder, name, 2), weights(folder, name, 1), atol=tolerance, rtol=0)


@pytest.mark.parametrize("name", [name for name in TRAININGS if name.startswith("r2d2")])
def test_all_ranks_know_the_same_pool(name, folder):
    one, first, second = (
        torch.load(folder / f"{name}_{ranks}" / f"report_{rank}.pt", weights_only=True)["adversarial_training"]
        for ranks, rank in ((1, 0), (2, 0), (2, 1))
    )
    for told in ("substitutions", "without_a_text", "resets", "left_out"):
        assert one[told] == first[told] == second[told]
    torch.testing.assert_close(
        torch.tensor(first["losses"]["points"]), torch.tensor(one["losses"]["points"]), atol=1e-4, rtol=0
    )


@pytest.mark.parametrize("name", RESUMED)
def test_two_ranks_resume_bit_for_bit(name, folder):
    whole, parts = weights(folder, name.removesuffix("_resumed"), 2), weights(folder, name, 2)
    assert [key for key in whole if not torch.equal(whole[key], parts[key])] == []
