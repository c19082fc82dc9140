"""Trait vectors: the file, the authors' files, fusion, and what is refused."""

import json

import pytest
import torch
from transformers import PreTrainedConfig

from bulwark.errors import BulwarkError, ConfigurationError
from bulwark.files import digest
from bulwark.steering.settings import VectorSettings
from bulwark.steering.vectors import storage
from bulwark.steering.vectors.fusion import fuse, load_fused
from bulwark.steering.vectors.storage import read, read_published, write

N, H = 4, 6


def rows(seed=0, layers=N, hidden=H):
    return torch.randn(layers + 1, hidden, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def files(tmp_path):
    """Files of two traits."""
    paths = {"rude": tmp_path / "rude.safetensors", "vain": tmp_path / "vain.safetensors"}
    for seed, (trait, path) in enumerate(paths.items()):
        write(path, rows(seed) * (seed + 1), {"trait": trait, "model": {"digest": "abc"}})
    return paths


def load(settings, paths, layers=N, hidden=H, **more):
    model = torch.nn.Module()
    model.config = PreTrainedConfig(num_hidden_layers=layers, hidden_size=hidden)
    model.blocks = torch.nn.ModuleList(torch.nn.Identity() for _ in range(layers))
    settings = {"traits": ("rude", "vain"), "layers": (2,), **settings}
    return load_fused(VectorSettings(**settings), paths, model, **more)


# Acceptance test 1: fusion


def test_1_modes_0_and_1_have_the_same_direction_and_mode_0_the_mean_norm():
    given = torch.stack([rows(0)[1], 3 * rows(1)[1], 5 * rows(2)[1]])
    aligned, average = fuse(given, "norm_aligned"), fuse(given, "average")
    assert float(torch.cosine_similarity(aligned, average, dim=0)) == pytest.approx(1.0, abs=1e-6)
    assert float(aligned.norm()) == pytest.approx(float(given.norm(dim=1).mean()), rel=1e-6)
    assert torch.allclose(average, given.mean(0))
    rho = float(given.norm(dim=1).mean() / given.mean(0).norm())
    assert float(aligned.norm() / average.norm()) == pytest.approx(rho, rel=1e-6)


@pytest.mark.parametrize("fusion", ["norm_aligned", "average", "norm_weighted"])
def test_1_a_single_vector_stays_raw_whatever_the_weights(fusion):
    vector = rows()[1:2]
    assert torch.equal(fuse(vector, fusion, (3.0,)), vector[0])


def test_weights_turn_the_direction_and_only_mode_2_weighs_the_norm():
    given = torch.stack([2 * torch.eye(H)[0], 4 * torch.eye(H)[1]])
    aligned = fuse(given, "norm_aligned", (3.0, 1.0))
    direction = torch.nn.functional.normalize(0.75 * given[0] + 0.25 * given[1], dim=0)
    assert torch.allclose(aligned, 3.0 * direction, atol=1e-6)
    assert torch.allclose(fuse(given, "norm_weighted", (3.0, 1.0)), 2.5 * direction, atol=1e-6)
    assert torch.allclose(fuse(given, "average", (3.0, 1.0)), given.mean(0))


def test_unusable_weights_and_vectors_that_cancel_are_refused():
    given = torch.stack([torch.eye(H)[0], torch.eye(H)[1]])
    for weights in ((1.0,), (1.0, -1.0), (1.0, float("nan"))):
        with pytest.raises(ConfigurationError, match="2 finite weights"):
            fuse(given, "norm_aligned", weights)
    with pytest.raises(ConfigurationError, match="needs weights"):
        fuse(given, "norm_weighted")
    with pytest.raises(ConfigurationError, match="cancel"):
        fuse(torch.stack([given[0], -given[0]]), "norm_aligned")


# Acceptance test 14: layer keys and shapes


@pytest.mark.parametrize(("layer", "part"), [(N, "final norm"), (N + 1, "from 1 to 3"), (99, "from 1 to 3")])
def test_14_layer_keys_outside_the_residual_stream_are_refused(files, layer, part):
    with pytest.raises(ConfigurationError, match=part):
        load({"layers": (layer,)}, files)


def test_14_layer_key_0_is_refused_before_anything_is_read():
    with pytest.raises(ValueError, match="0, the embeddings"):
        VectorSettings(traits=("rude",), layers=(0,))


@pytest.mark.parametrize("shape", [{"hidden": H + 1}, {"layers": N + 1}, {"layers": N - 1}])
def test_14_vectors_of_a_model_of_another_shape_are_refused(files, shape):
    with pytest.raises(ConfigurationError, match="belong to another model"):
        load({}, files, **shape)


def test_vectors_of_another_checkpoint_are_refused(files):
    load({}, files, model_digest="abc")
    with pytest.raises(ConfigurationError, match="another checkpoint"):
        load({}, files, model_digest="abd")


def test_a_vector_without_a_direction_is_refused(files):
    weak = rows()
    weak[2] = 1e-11
    write(files["rude"], weak, {})
    with pytest.raises(ConfigurationError, match="layer key 2 is 0"):
        load({}, files)
    load({"layers": (3,)}, files)


def test_the_report_says_what_was_fused(files):
    fused = load({"layers": (1, 3)}, files)
    assert set(fused.at) == {1, 3}
    assert fused.at[3].dtype == torch.float32
    told = json.loads(json.dumps(fused.report))
    assert told["files"]["rude"] == digest(files["rude"])
    row = told["layers"]["3"]
    one, other = rows(0)[3], 2 * rows(1)[3]
    assert row["norms"] == pytest.approx({"rude": float(one.norm()), "vain": float(other.norm())})
    assert row["cosines"]["rude, vain"] == pytest.approx(float(torch.cosine_similarity(one, other, dim=0)), abs=1e-6)
    assert row["fused_norm"] == pytest.approx(float((one.norm() + other.norm()) / 2), rel=1e-5)
    assert row["rho"] == pytest.approx(row["fused_norm"] / float(((one + other) / 2).norm()), rel=1e-5)


# Files


def test_a_vector_is_of_the_tokens_that_are_asked_for(tmp_path):
    """And the report says which; a file with vectors over the response only is told apart from a broken one."""
    path, published = tmp_path / "rude.safetensors", tmp_path / "published.safetensors"
    write(path, rows(0), {"trait": "rude"}, prompt_mean=rows(1), prompt_last=rows(2))
    write(published, rows(0), {"trait": "rude"})
    for place, pool in enumerate(("response_mean", "prompt_mean", "prompt_last")):
        found = load({"traits": ("rude",), "pool": pool}, {"rude": path})
        assert torch.equal(found.at[2], rows(place)[2])
        assert found.report["pool"] == pool
    assert load({"traits": ("rude",)}, {"rude": path}).report["pool"] == "response_mean"
    assert torch.equal(read(published)[0], rows(0))
    with pytest.raises(BulwarkError, match=r"over the response only\. Set vectors\.pool .*to response_mean"):
        read(published, "prompt_mean")


def test_a_file_holds_what_was_written(tmp_path):
    path = tmp_path / "new" / "rude.safetensors"
    write(path, rows().half(), {"trait": "rude"}, prompt_last=rows(1))
    found, told = read(path)
    assert torch.equal(found, rows().half().float())
    assert torch.equal(read(path, "prompt_last")[0], rows(1))
    assert told["trait"] == "rude"
    assert told["norms"] == pytest.approx(found.norm(dim=1).tolist())
    assert [file.name for file in path.parent.iterdir()] == ["rude.safetensors"]


def test_another_file_is_refused(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(b"no tensors")
    for name in ("a.safetensors", "missing.safetensors"):
        with pytest.raises(BulwarkError, match=name):
            read(tmp_path / name)


def test_the_authors_two_forms_are_read(tmp_path):
    torch.save(rows().double(), tmp_path / "all.pt")
    assert torch.equal(read_published(tmp_path / "all.pt"), rows())
    torch.save({1: rows()[1].bfloat16(), 3: rows()[3]}, tmp_path / "some.pt")
    found = read_published(tmp_path / "some.pt")
    assert torch.equal(found[3], rows()[3])
    assert found[[0, 2]].isnan().all()


@pytest.mark.parametrize(
    ("payload", "part"),
    [
        ([1, 2], "found a list"),
        (torch.zeros(4), r"found a tensor \[4\]"),
        (torch.zeros(2, 3, dtype=torch.long), "torch.int64"),
        ({}, "found a dict"),
        ({"1": torch.zeros(3)}, "layer keys are whole numbers"),
        ({1: torch.zeros(3), 2: torch.zeros(4)}, "different sizes"),
        ({1: [0.0]}, "found a list"),
        ({10**9: torch.zeros(3)}, "layer keys are whole numbers from 0, below"),
        (torch.full((3, 4), torch.nan), "no layer of which all are finite"),
        (torch.zeros(0, 4), "no layer of which all are finite"),
    ],
)
def test_other_payloads_are_refused(tmp_path, payload, part):
    torch.save(payload, tmp_path / "v.pt")
    with pytest.raises(BulwarkError, match=part):
        read_published(tmp_path / "v.pt")


@pytest.mark.parametrize("content", [b"", b"hello world", b"PK\x03\x04 cut"])
def test_files_that_are_no_tensors_are_refused(tmp_path, content):
    (tmp_path / "v.pt").write_bytes(content)
    with pytest.raises(BulwarkError, match=r"v\.pt: cannot be read as tensors and nothing else"):
        read_published(tmp_path / "v.pt")


def test_who_may_read_other_files_may_read_vectors(tmp_path):
    storage.write(tmp_path / "v.safetensors", rows(), {})
    (tmp_path / "text").write_text("")
    modes = [(tmp_path / name).stat().st_mode & 0o777 for name in ("v.safetensors", "text")]
    assert modes[0] == modes[1]


class Code:
    """What a pickle could run."""

    def __reduce__(self):
        return (print, ("run",))


def test_nothing_pickled_is_run(tmp_path, capsys):
    torch.save({1: Code()}, tmp_path / "v.pt")
    with pytest.raises(BulwarkError, match="as tensors and nothing else"):
        read_published(tmp_path / "v.pt")
    assert "run" not in capsys.readouterr().out


def test_an_adopted_file_serves_the_layers_that_it_has(tmp_path):
    torch.save({1: rows()[1], 3: rows()[3]}, tmp_path / "v.pt")
    storage.adopt(tmp_path / "v.pt", "evil", "some-model", tmp_path / "evil.safetensors")
    paths, settings = {"evil": tmp_path / "evil.safetensors"}, {"traits": ("evil",)}
    assert torch.equal(load({**settings, "layers": (3,)}, paths, model_digest="abc").at[3], rows()[3])
    with pytest.raises(ConfigurationError, match=r"layer key 2; it has \[1, 3\]"):
        load({**settings, "layers": (2,)}, paths)
    told = read(paths["evil"])[1]
    assert told["source"]["sha256"] == digest(tmp_path / "v.pt")
    assert told["norms"][2] is None
