"""A model whose blocks lie on several devices: where each goes, and that everything gives what it gives on one.

The devices are tests/helpers/two_cards.py's, on which tensors of two devices refuse to meet as on GPUs.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from abliteration_samples import checkpoint
from generation_samples import sample_model
from torch import nn

from bulwark.errors import BulwarkError, CheckpointError
from bulwark.models import batching, checkpoints
from bulwark.models.open import open_model
from bulwark.models.placing import spread
from bulwark.models.placing.loading import GB, Loading, places

HELPERS = Path(__file__).parents[2] / "helpers"
KINDS = ("passes", "heretic", "refusal_direction", "gradient_edit")


def best(blocks, outside, room) -> float:
    """The smallest load of the fullest device, as a share of its room, over all ways to cut the row of blocks."""
    found = []
    for cuts in itertools.combinations_with_replacement(range(len(blocks) + 1), len(room) - 1):
        ends = [0, *cuts, len(blocks)]
        loads = [sum(blocks[start:end]) for start, end in itertools.pairwise(ends)]
        loads[0] += outside
        found.append(max(load / size for load, size in zip(loads, room, strict=True)))
    return min(found)


@pytest.mark.parametrize(
    ("blocks", "outside", "room"),
    [
        ([1.0] * 8, 0.0, [1.0, 1.0]),
        ([1.0] * 8, 3.0, [1.0, 1.0]),
        ([2.0, 1.0, 4.0, 1.0, 1.0, 3.0], 0.5, [1.0, 1.0, 1.0]),
        ([1.0] * 7, 2.0, [3.0, 9.0]),
        ([1.0] * 2, 0.0, [1.0, 1.0, 1.0]),
        ([5.0], 9.0, [1.0, 1.0]),
    ],
)
def test_the_fullest_gpu_holds_as_little_as_it_can(blocks, outside, room):
    scale = (sum(blocks) + outside) / min(room)  # room enough
    found = places(blocks, outside, len(room), [size * scale for size in room])
    assert found == sorted(found), "blocks keep their order"
    loads = [sum(size for size, place in zip(blocks, found, strict=True) if place == gpu) for gpu in range(len(room))]
    loads[0] += outside
    share = max(load / size for load, size in zip(loads, room, strict=True))
    assert share == pytest.approx(best(blocks, outside, room), rel=1e-6)
    if len(set(room)) == 1:
        assert places(blocks, outside, len(room)) == found


def test_what_does_not_fit_is_told_with_what_to_do():
    with pytest.raises(
        BulwarkError, match=r"12 GB of weights do not fit into 5, 5 GB on 2 GPUs.*resources\.generate\.gpu"
    ):
        places([2.0 * GB] * 5, 2.0 * GB, 2, [5.0 * GB, 5.0 * GB])
    with pytest.raises(BulwarkError, match="There are 2 GPUs, and 1 numbers"):
        places([1.0], 0.0, 2, [1.0])


def near(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(near(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(near, one, other))
    return one == pytest.approx(other, rel=1e-4, abs=2e-5) if isinstance(one, float) else one == other


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict[str, Any]:
    line = [sys.executable, str(HELPERS / "over_two_cards.py"), str(tmp_path_factory.mktemp("cards")), *KINDS]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_every_pass_gives_on_two_devices_what_it_gives_on_one(found):
    cpu, cards = found["cpu"]["passes"], found["cards"]["passes"]
    assert cards.pop("devices") == ["card:0", "card:1"]
    on = cards.pop("on")
    assert on["model.embed_tokens.weight"] == on["model.layers.0.mlp.down_proj.weight"] == "card:0"
    assert on[max(name for name in on if "down_proj" in name)] == "card:1"
    for name, value in cards.items():
        assert near(cpu[name], value), name


@pytest.mark.parametrize("kind", KINDS[1:])
def test_an_attack_on_two_devices_exports_what_it_exports_on_one(found, kind):
    assert near(found["cpu"][kind], found["cards"][kind])


def test_a_second_device_that_is_forgotten_is_noticed(tmp_path):
    """The helper's own check: without the hooks between devices a pass fails."""
    script = (
        "import over_two_cards as o; from pathlib import Path; from bulwark.models.placing import spread\n"
        "spread.pass_between = lambda model: None\n"
        f"parent = o.checkpoint(Path({str(tmp_path / 'parent')!r}))\n"
        "with o.gpus_are_cards():\n    o.passes(o.open_model(parent, 'float32', loading=o.Loading(gpus=2)))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=HELPERS, capture_output=True, text=True, check=False)
    assert "but found card:0, card:1" in done.stderr


def test_a_tied_output_embedding_and_a_role_embedding_are_spread_too(tmp_path):
    """Read by transformers' own device map, here all onto the CPU."""
    model = sample_model()
    checkpoints.save_model(model, open_tokenizer(tmp_path), tmp_path / "roles")
    again = spread.spread(tmp_path / "roles", "float32", [torch.device("cpu")] * 2, Loading(gpus=2))
    ids = torch.arange(12)[None] + 500
    with torch.no_grad():
        assert torch.equal(again(input_ids=ids).logits, model(input_ids=ids).logits)
    assert "forward" not in vars(again.model.layers[0]), "no hook of accelerate is left"


def open_tokenizer(folder: Path):
    return open_model(checkpoint(folder / "base"), "float32").tokenizer


def test_one_gpu_or_a_cpu_holds_a_model_whole(tmp_path, monkeypatch):
    parent = checkpoint(tmp_path / "base")
    monkeypatch.setattr(spread, "spread", lambda *_, **__: pytest.fail("spread"))
    subject = open_model(parent, "float32", loading=Loading(gpus=2))
    assert subject.device == "cpu"
    assert subject.loading.gpus == 2
    seen = []
    monkeypatch.setattr(checkpoints, "load_model", lambda *given, **options: seen.append((given[2], options)))
    spread.load(tmp_path, "bfloat16", "cuda", Loading(attention="eager"))
    assert seen == [("cuda", {"attention": "eager"})]


def test_fewer_gpus_than_asked_for_and_flash_in_float32_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 1)
    with pytest.raises(BulwarkError, match=r"over 2 GPUs.*this job sees 1"):
        spread.load(tmp_path, "bfloat16", "cuda", Loading(gpus=2))
    with pytest.raises(CheckpointError, match="half precision only"):
        spread.load(tmp_path, "float32", "cuda", Loading(attention="flash_attention_2"))
    with pytest.raises(CheckpointError, match=r"flash-attn|no such model folder"):
        spread.load(tmp_path / "none", "bfloat16", "cuda", Loading(attention="flash_attention_2"))


def test_the_attention_that_is_asked_for_is_used(tmp_path):
    subject = open_model(checkpoint(tmp_path / "base"), "float32", loading=Loading(attention="eager"))
    assert subject.model.config._attn_implementation == "eager"
    plain = open_model(tmp_path / "base", "float32")
    assert plain.model.config._attn_implementation == "sdpa"
    assert plain.fingerprint() != subject.fingerprint()


def test_the_fullest_gpu_decides_how_many_tokens_are_cached(monkeypatch):
    """Three blocks on one GPU and one on another: 2 · heads · size · bytes per token and block."""
    first, second = torch.device("cuda", 0), torch.device("cuda", 1)
    blocks = nn.ModuleList(nn.Linear(1, 1) for _ in range(4))
    on = [first, first, first, second]
    for block, device in zip(blocks, on, strict=True):
        block.parameters = lambda device=device: iter([SimpleNamespace(device=device)])  # type: ignore[method-assign]
    config = SimpleNamespace(num_key_value_heads=2, head_dim=8, num_hidden_layers=4)
    config.get_text_config = lambda: config
    model = SimpleNamespace(device=first, dtype=torch.bfloat16, config=config)
    monkeypatch.setattr(batching, "blocks_of", lambda _: blocks)
    free = {first: 96_000, second: 16_000}
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free[device], 0))
    per_block = 2 * 2 * 8 * 2
    assert batching.cache_token_budget(model) == int(16_000 * 2 / 3 / per_block)
    free[first] = 30_000
    assert batching.cache_token_budget(model) == int(30_000 / 3 * 2 / 3 / per_block)
