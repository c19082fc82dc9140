"""Two processes on the CPU preserve and continue ΔW as one does, at every ZeRO stage; so do their pieces of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

STAGES = [
    (0, "float32"),
    (1, "float32"),
    (2, "float32"),
    (3, "float32"),
    (1, "bfloat16"),
    (2, "bfloat16"),
    (3, "bfloat16"),
]
WAYS = {
    "update": {"preservation": {"scope": "all_linear"}},
    "published": {
        "preservation": {
            "project": "gradient",
            "basis": "qr_slice_as_published",
            "delta": "rounded_weights_as_published",
            "moments": "keep",
        }
    },
    "flat": {"preservation": {"shape": "flat", "remove": "eroding", "project": "both", "strength": 0.5}},
    "functional_mean": {"continuation": {}, "intervention": {"adaptive": True}},
    "svd_u": {"continuation": {"source": "svd_u", "rank": 2, "sign": "opposite"}},
}
AT = {
    "update": STAGES[:4],
    "published": [(0, "float32"), (3, "float32"), (1, "bfloat16"), (3, "bfloat16")],
    "flat": [(2, "float32"), (3, "float32"), (1, "bfloat16")],
    "functional_mean": [(0, "float32"), (3, "float32")],
    "svd_u": [(1, "float32"), (2, "float32"), (3, "float32")],
}
TRAININGS = {
    f"{way}-{stage}-{precision}": arguments | {"settings": {"zero_stage": stage, "precision": precision}}
    for way, arguments in WAYS.items()
    for stage, precision in AT[way]
}
CHECKS = {
    f"{checks}-{stage}-{precision}": {
        "checks": checks,
        "settings": {"zero_stage": stage, "precision": precision, "max_steps": 2},
    }
    for checks, stages in (("Checked", STAGES), ("Scaled", STAGES[2:5]), ("EditedInPieces", STAGES[1:5]))
    for stage, precision in stages
}
RESUMED = {
    f"{way}_resumed_{at}": WAYS[way] | {"interrupt": at, "settings": {"zero_stage": stage, "save_every": 1}}
    for way, stage in (("update", 3), ("flat", 2), ("functional_mean", 3))
    for at in (2, 3, 4)
}


PROGRAM = "delta_ranks"
# All trainings with two ranks and with one; the resumed ones with two only.
PLANS = {
    ranks: [
        training | {"name": name, "settings": {"micro_batch_size": 1} | training["settings"]}
        for name, training in trainings.items()
    ]
    for ranks, trainings in ((1, TRAININGS | CHECKS), (2, TRAININGS | CHECKS | RESUMED))
}


@pytest.fixture(scope="module")
def folder(launched: Path) -> Path:
    return launched / PROGRAM


def weights(folder: Path, name: str, ranks: int) -> dict[str, torch.Tensor]:
    return torch.load(folder / f"{name}_{ranks}" / "weights.pt", weights_only=True)


def objective(folder: Path, name: str, ranks: int, rank: int = 0) -> dict:
    return torch.load(folder / f"{name}_{ranks}" / f"objective_{rank}.pt", weights_only=True)


@pytest.mark.parametrize("name", TRAININGS)
def test_two_ranks_end_where_one_ends(name, folder):
    tolerance = 1e-5 if "float32" in name else 2e-2
    torch.testing.assert_close(weights(folder, name, 2), weights(folder, name, 1), atol=tolerance, rtol=0)


@pytest.mark.parametrize("name", [name for name in TRAININGS if name.startswith("update")])
def test_no_stage_lets_weights_move_along_the_directions(name, folder):
    for ranks in (1, 2):
        shares = [share for _, share, _ in objective(folder, name, ranks)["report"]["steering"]["retained_and_drift"]]
        assert shares == pytest.approx([1.0] * len(shares), abs=1e-5)


@pytest.mark.parametrize("name", [name for name in TRAININGS if name.startswith(("functional_mean", "svd_u"))])
def test_all_ranks_continue_with_the_same_vectors(name, folder):
    """Bit for bit the same on all ranks, and what one process finds in the same data."""
    one, first, second = (objective(folder, name, *which)["at"] for which in ((1, 0), (2, 0), (2, 1)))
    for module, u in first.items():
        assert torch.equal(second[module], u)
        torch.testing.assert_close(u, one[module], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("name", CHECKS)
def test_pieces_are_those_of_the_whole_on_two_ranks(name, folder):
    """The checks themselves are in shard_samples; here, that both ranks came to the same end as one."""
    tolerance = 1e-4 if "float32" in name else 5e-2
    torch.testing.assert_close(weights(folder, name, 2), weights(folder, name, 1), atol=tolerance, rtol=0)


@pytest.mark.parametrize("name", RESUMED)
def test_two_ranks_resume_around_the_boundary_bit_for_bit(name, folder):
    way, stage = name.partition("_resumed")[0], RESUMED[name]["settings"]["zero_stage"]
    whole, parts = weights(folder, f"{way}-{stage}-float32", 2), weights(folder, name, 2)
    assert [key for key in whole if not torch.equal(whole[key], parts[key])] == []
