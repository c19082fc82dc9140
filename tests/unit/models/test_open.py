"""An open model: what its manifest and the caller say, and what its answers are recognised by."""

from __future__ import annotations

import shutil

import pytest
import torch
from examinee_samples import V, tiny_aside
from tiny_tokenizers import tiny_tokenizer

from bulwark import files, seals
from bulwark.data.records import Turn
from bulwark.errors import BulwarkError, CheckpointError
from bulwark.models import checkpoints, manifests
from bulwark.models.decoding import Decoding
from bulwark.models.embeddings import install
from bulwark.models.open import open_model

QUESTION = [Turn(role="instruction", text="Name the tree."), Turn(role="data", text="The committee met. " * 20)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    checkpoints.save_model(tiny_aside(), tiny_tokenizer("chatml"), folder)
    told = {"template": "alpaca", "weights": ".", "model": "tiny", "recipe": "aside", "seed": 3}
    manifests.write_manifest(folder / "checkpoint.json", told)
    return folder


def test_the_manifest_names_the_template_and_the_caller_may_name_another(folder):
    subject = open_model(folder, "bfloat16", device="cpu")
    assert (subject.template, subject.dtype, subject.device) == ("alpaca", "bfloat16", "cpu")
    assert subject.manifest == folder / "checkpoint.json"
    assert subject.builder.vocabulary == V
    assert not subject.model.training
    assert open_model(folder / "checkpoint.json", "float32", template="chat").template == "chat"


def test_prompts_are_cut_to_max_tokens_and_data_keeps_its_role(folder):
    whole, cut = open_model(folder, "float32"), open_model(folder, "float32", max_tokens=90)
    assert not whole.builder.prompt(QUESTION).truncated
    prompt = cut.builder.prompt(QUESTION)
    assert prompt.truncated
    assert len(prompt.ids) <= 90
    assert max(prompt.ids) >= 2 * V


def test_what_identifies_a_checkpoint_and_its_answers(folder):
    subject = open_model(folder, "float32", device="cpu")
    assert subject.description == {
        "model": "tiny",
        "recipe": "aside",
        "seed": 3,
        "digest": files.digest(folder / "checkpoint.json"),
        "prompt": subject.builder.digest,
    }
    others = [
        open_model(folder, "bfloat16", device="cpu").fingerprint(),
        open_model(folder, "float32", template="chat").fingerprint(),
        subject.fingerprint(layer=2),
        subject.fingerprint(layer=3),
    ]
    assert len({subject.fingerprint(), *others}) == 5
    assert open_model(folder, "float32").fingerprint() == subject.fingerprint()


def test_a_checkpoint_that_is_written_again_with_equal_weights_keeps_its_answers(folder, tmp_path):
    """Its manifest has other times and another place; what its files hold decides, and how it is spoken to."""
    copy = shutil.copytree(folder, tmp_path / "copy")
    before = open_model(folder, "float32")
    known = manifests.read_manifest(copy / "checkpoint.json")
    seals.write_manifest(copy / "checkpoint.json", known | {"wall_seconds": 1.5})
    again = open_model(copy, "float32")
    assert again.description["digest"] != before.description["digest"]
    assert again.fingerprint() == before.fingerprint()
    (copy / "other.txt").write_text("other")
    manifests.write_manifest(copy / "checkpoint.json", known)
    assert open_model(copy, "float32").fingerprint() != before.fingerprint()


def test_a_bare_folder_has_the_chat_template_and_no_manifest(folder, tmp_path):
    checkpoints.save_model(tiny_aside(), tiny_tokenizer("chatml"), tmp_path)
    subject = open_model(tmp_path, "float32")
    assert (subject.template, subject.manifest) == ("chat", None)
    answer = subject.generate([("a", subject.builder.prompt(QUESTION))], Decoding(max_new_tokens=3))[0]
    assert answer.tokens <= 3
    with pytest.raises(CheckpointError, match="no such model folder"):
        open_model(tmp_path / "none", "float32")


def test_threads_are_set_where_they_are_named(folder):
    before = torch.get_num_threads()
    try:
        open_model(folder, "float32", threads=2)
        assert torch.get_num_threads() == 2
        open_model(folder, "float32")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_builder_for_another_vocabulary_is_told(folder):
    subject = open_model(folder, "float32", device="cpu")
    prompt = subject.builder.prompt(QUESTION)
    subject.model.resize_token_embeddings(V + 8)
    install(subject.model)
    for ask in (
        lambda: subject.generate([("x", prompt)], Decoding(max_new_tokens=1)),
        lambda: subject.residuals([prompt]),
    ):
        with pytest.raises(BulwarkError, match=f"roles for {V} rows, but the model's embedding has {V + 8}"):
            ask()
