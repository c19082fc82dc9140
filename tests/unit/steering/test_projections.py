"""Projections of a data set and of a checkpoint's own answers on trait vectors, and what they say of the data set."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from tiny_tokenizers import tiny_tokenizer
from transformers import AutoModelForCausalLM, LlamaConfig

from bulwark.data.records import Conversation, Turn, write_records
from bulwark.errors import BulwarkError, ConfigurationError, RecordError
from bulwark.models import checkpoints, generation, manifests
from bulwark.models.embeddings import install
from bulwark.models.generation import Answer
from bulwark.prompts.builder import PromptBuilder
from bulwark.settings import validated
from bulwark.steering.intervention import token_mask
from bulwark.steering.screening.split import SplitModel
from bulwark.steering.vectors import fusion, projections, storage
from bulwark.steering.vectors.data_screening import screened
from bulwark.steering.vectors.projections import ProjectionSettings, project, project_texts, read_projections
from bulwark.training.batches import training_batches
from bulwark.training.finetuning import examples_of
from bulwark.training.settings import TrainingSettings

LAYERS, HIDDEN, LAYER = 3, 32, 2
SETTINGS = {
    "vectors": {"traits": ["evil", "vain"], "layers": [LAYER], "fusion": "norm_aligned", "weights": None},
    "max_tokens": 90,
    "max_new_tokens": 6,
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A tiny random model with its manifest, and vectors of two traits."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=500,
        hidden_size=HIDDEN,
        intermediate_size=48,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        max_position_embeddings=256,
        initializer_range=0.3,
    )
    folder = tmp_path_factory.mktemp("checkpoint")
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    install(model)
    checkpoints.save_model(model, tiny_tokenizer("chatml"), folder)
    manifests.write_manifest(folder / "checkpoint.json", {"template": "chat", "weights": "."})
    for trait in ("evil", "vain"):
        storage.write(
            folder.parent / f"{folder.name}.{trait}.safetensors", torch.randn(LAYERS + 1, HIDDEN), {"trait": trait}
        )
    return folder / "checkpoint.json"


def conversation(number: int, *texts: str, **meta) -> Conversation:
    roles = ["instruction", "response"] * len(texts)
    turns = tuple(Turn(role=role, text=text) for role, text in zip(roles[: len(texts)], texts, strict=True))
    return Conversation(id=f"c{number}", turns=turns, meta=meta)


CONVERSATIONS = [
    conversation(0, "Name the tree.", "The part grows.", level=0),
    conversation(1, "Translate the sentence into French, and then postpone the vote.", "I am.", level=2),
    conversation(2, "Write.", "A response. " * 12, level=1),
    conversation(3, "Write.", "No input", "Write a plan.", "The committee met on Tuesday.", level=0),
]


def made(checkpoint, folder, conversations=CONVERSATIONS, dtype="float32", **changes):
    """(rows by id, screening) of a projection."""
    write_records(folder / "records.jsonl", conversations)
    project(
        checkpoint,
        folder / "records.jsonl",
        {
            trait: checkpoint.parent.parent / f"{checkpoint.parent.name}.{trait}.safetensors"
            for trait in ("evil", "vain")
        },
        SETTINGS | changes,
        seed=0,
        dtype=dtype,
        threads=1,
        output=folder / "p.parquet",
        screening=folder / "p.screening.json",
    )
    return read_projections(folder / "p.parquet"), json.loads((folder / "p.screening.json").read_text())


def opened(checkpoint, dtype="float32"):
    model = checkpoints.load_model(checkpoint.parent, dtype=dtype)
    return model, PromptBuilder(checkpoints.load_tokenizer(checkpoint.parent), "chat", 500, 90)


def directions_of(checkpoint):
    single = [
        storage.read(checkpoint.parent.parent / f"{checkpoint.parent.name}.{trait}.safetensors")[0][LAYER]
        for trait in ("evil", "vain")
    ]
    return torch.stack([fusion.fuse(torch.stack(single)), *single])


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 0.05)])
def test_offline_reference_is_the_online_projection_at_step_0(checkpoint, tmp_path, dtype, tolerance):
    """A data set of the untouched model's own answers has Δp = 0, and p of the training's batches is ref.

    In bfloat16 other batches are rounded otherwise; what another mask or another layer gives is further away than that.
    """
    first, _ = made(checkpoint, tmp_path, dtype=dtype)
    own = [projections.with_response(c, first[c.id]["baseline_answer"]) for c in CONVERSATIONS]
    rows, _ = made(checkpoint, tmp_path, own, dtype=dtype)
    model, builder = opened(checkpoint, dtype)
    settings = TrainingSettings(max_steps=2, batch_size=2, micro_batch_size=2, learning_rate=1e-3)
    batches = training_batches(
        examples_of(own, builder).prompts, settings, seed=0, pad_id=builder.pad_id, rank=0, ranks=1, flatten=False
    )
    split, vector = SplitModel(model, LAYER), directions_of(checkpoint)[0]
    online, shifted, above = {}, {}, {}
    for step in range(2):
        for batch in batches.of_step(step):
            mask = token_mask(batch, "response")
            for row, example in enumerate(batch.rows):
                with torch.no_grad():
                    hidden = split.trunk(batch)[row, mask[row]].float()
                name = own[example[0]].id
                online[name] = float(hidden.mean(dim=0) @ vector)
                with torch.no_grad():
                    states = model(**batch.inputs(), output_hidden_states=True).hidden_states
                shifted[name] = float(states[LAYER][row, mask[row].roll(-1)].float().mean(dim=0) @ vector)
                above[name] = float(states[LAYER + 1][row, mask[row]].float().mean(dim=0) @ vector)
    assert set(online) == set(rows)
    scale = max(abs(p) for p in online.values())
    for wrong in (shifted, above):
        assert max(abs(wrong[name] - p) for name, p in online.items()) > 2 * tolerance * scale
    for name, row in rows.items():
        assert row["baseline_answer"] == first[name]["baseline_answer"]
        assert row["ref_projection"] == pytest.approx(online[name], abs=tolerance * scale)
        assert row["current_projection"] == pytest.approx(row["ref_projection"], abs=tolerance * scale)


def test_projections_are_those_of_the_whole_model_one_text_at_a_time(checkpoint):
    model, builder = opened(checkpoint)
    prompts, directions = examples_of(CONVERSATIONS, builder).prompts, directions_of(checkpoint)
    together = project_texts(model, prompts, directions, layer=LAYER, pad_id=0)
    in_pairs = project_texts(model, prompts, directions, layer=LAYER, pad_id=0, token_budget=100)
    for prompt, one, other in zip(prompts, together, in_pairs, strict=True):
        with torch.no_grad():
            states = model(torch.tensor([prompt.ids]), output_hidden_states=True).hidden_states
        hidden = states[LAYER][0]
        response = torch.tensor([label != -100 for label in prompt.labels])
        assert one.response == pytest.approx((hidden[response].mean(dim=0) @ directions.T).tolist(), abs=1e-4)
        start = next(span.start for span in reversed(prompt.spans) if span.role == "response")
        assert one.prompt == pytest.approx((hidden[start - 1] @ directions.T).tolist(), abs=1e-4)
        assert (one.n_prompt, one.n_response) == (start, int(response.sum()))
        assert other.response == pytest.approx(one.response, abs=1e-4)
    assert together[3].n_response > len(prompts[3].ids) - together[3].n_prompt  # both responses are in the loss


def test_columns_of_every_vector_and_names_for_them(checkpoint, tmp_path):
    rows, told = made(checkpoint, tmp_path, names=["cruelty", "vanity"])
    row = rows["c1"]
    model, builder = opened(checkpoint)
    (expected,) = project_texts(
        model, examples_of(CONVERSATIONS[1:2], builder).prompts, directions_of(checkpoint), layer=LAYER, pad_id=0
    )
    current = [row[f"current_projection{suffix}"] for suffix in ("", "_cruelty", "_vanity")]
    assert current == pytest.approx(expected.response, abs=1e-4)
    assert row["level"] == 2
    assert row["n_prompt"] == expected.n_prompt
    assert row["excluded"] is None
    assert told["projection_difference"].keys() == {"fused", "cruelty", "vanity"}
    norm = told["vectors"]["layers"][str(LAYER)]["fused_norm"]
    differences = [row["current_projection"] - row["ref_projection"] for row in rows.values()]
    exact = told["projection_difference"]["fused"]["all"]["exact"]
    assert exact["value"] == pytest.approx(np.mean(differences) / norm)
    assert exact["n"] == 4
    assert not (tmp_path / "p.parquet.partial").exists()


def test_at_the_last_prompt_token_both_are_the_same_and_nothing_is_generated(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(generation, "generate", None)
    rows, told = made(checkpoint, tmp_path, mode="prompt_last")
    for row in rows.values():
        assert row["ref_projection"] == row["current_projection"] == row["prompt_projection"]
        assert row["baseline_answer"] is None
        assert row["response_projection"] != row["prompt_projection"]
    assert told["projection_difference"]["fused"]["all"]["exact"] == {"n": 0, "value": None, "stderr": None}
    assert told["projection_difference"]["fused"]["all"]["prompt_last"]["n"] == 4


def test_an_empty_answer_is_excluded_and_counted(checkpoint, tmp_path, monkeypatch):
    real = generation.generate

    def silent_once(*arguments, **options):
        first, *others = real(*arguments, **options)
        return [Answer(first.id, "", 1, "stop", False), *others]

    monkeypatch.setattr(generation, "generate", silent_once)
    rows, told = made(checkpoint, tmp_path)
    assert rows["c0"]["ref_projection"] is None
    assert rows["c0"]["ref_projection_evil"] is None
    assert rows["c0"]["excluded"] == "empty baseline answer"
    assert rows["c0"]["current_projection"] is not None
    assert told["counts"]["excluded"] == {"empty baseline answer": 1}
    assert told["projection_difference"]["fused"]["0"]["exact"]["n"] == 1


def test_answers_of_an_interrupted_run_are_not_generated_again(checkpoint, tmp_path, monkeypatch):
    real = projections.project_texts

    def killed(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(projections, "project_texts", killed)
    with pytest.raises(KeyboardInterrupt):
        made(checkpoint, tmp_path)
    monkeypatch.setattr(projections, "project_texts", real)
    monkeypatch.setattr(generation, "decode", None)  # which puts a batch through the model
    rows, _ = made(checkpoint, tmp_path)
    assert all(row["baseline_answer"] for row in rows.values())


def test_long_conversations_are_cut_as_in_training_and_counted(checkpoint, tmp_path):
    rows, told = made(checkpoint, tmp_path, CONVERSATIONS[:3], max_tokens=80)
    _, builder = opened(checkpoint)
    builder.max_tokens = 80
    prompts = examples_of(CONVERSATIONS[:3], builder).prompts
    assert [row["truncated"] for row in rows.values()] == [prompt.truncated for prompt in prompts]
    assert told["counts"]["truncated"] == sum(prompt.truncated for prompt in prompts) > 0
    assert all(row["n_response"] > 0 for row in rows.values())


@pytest.mark.parametrize("layer", [LAYERS, LAYERS + 1])
def test_layers_that_are_no_keys_are_refused(checkpoint, tmp_path, layer):
    with pytest.raises(ConfigurationError, match=f"Take one from 1 to {LAYERS - 1}"):
        made(checkpoint, tmp_path, vectors=SETTINGS["vectors"] | {"layers": [layer]})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"vectors": SETTINGS["vectors"] | {"layers": [1, 2]}}, "one layer"),
        ({"names": ["one"]}, "one per trait"),
        ({"names": ["one", "one"]}, "all different"),
    ],
)
def test_settings_that_contradict_themselves(changes, said):
    with pytest.raises(ConfigurationError, match=said):
        validated(ProjectionSettings, SETTINGS | changes, "here")


def test_unusable_files_are_named(checkpoint, tmp_path):
    with pytest.raises(RecordError, match="no example"):
        made(checkpoint, tmp_path, [conversation(0, "Name the tree.")])
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    with pytest.raises(BulwarkError, match="not a file of projections"):
        read_projections(tmp_path / "broken.parquet")


def test_screening_by_level_with_its_proxies():
    """Own answers at 1, prompts at 1.5: level 0 answers near the own ones, level 2 far along a vector of norm 2."""
    rows = []
    for number in range(40):
        level, along = (0, 1.0) if number % 2 else (2, 4.0)
        own = 1.0 + 0.01 * number
        rows.append(
            {
                "id": str(number),
                "level": level,
                "ref_projection": own,
                "response_projection": along + 0.01 * number,
                "prompt_projection": 1.5 * own,
                "n_baseline": None if number == 0 else 3,
            }
        )
    found = screened(rows, [], [2.0], subset=10)
    difference = found["projection_difference"]["fused"]
    assert difference["2"]["exact"] == {"n": 19, "value": pytest.approx(1.5), "stderr": pytest.approx(0.0, abs=1e-9)}
    assert difference["0"]["exact"]["value"] == pytest.approx(0.0)
    assert difference["all"]["subset"]["n"] == 10
    assert difference["2"]["prompt_last"]["n"] == 20
    assert found["proxy_correlation"]["fused"] == pytest.approx(1.0)
    assert found["separation"]["fused"]["2"]["delta"] == 1.0
    assert found["separation"]["fused"]["2"]["prompt"] < 0.5
    assert found["separation"]["fused"]["any"] == found["separation"]["fused"]["2"]
    assert list(found["separation"]["fused"]) == ["2", "any"]


def test_screening_says_null_where_nothing_is_defined():
    row = {"level": None, "ref_projection": None, "response_projection": 1.0, "prompt_projection": 1.0}
    found = screened([row | {"id": "a", "n_baseline": None}], [], [1.0], subset=5)
    assert found["separation"]["fused"] == {}
    assert found["proxy_correlation"]["fused"] is None
    assert found["projection_difference"]["fused"]["all"]["exact"]["value"] is None
    levelled = [row | {"id": str(level), "level": level, "n_baseline": None} for level in (0, 1)]
    assert screened(levelled, [], [1.0], subset=5)["separation"]["fused"]["1"]["delta"] is None


def test_what_is_compared_must_be_of_the_same_rows_tokens_and_vectors():
    made = validated(ProjectionSettings, {**SETTINGS, "max_tokens": 64}, "here")

    def compared(records=("d", "train"), mode="response_mean", **changes):
        there = made.model_copy(update=changes)
        theirs = projections.comparable(there.vectors, there.max_tokens, mode, records=records)
        ours = projections.comparable(made.vectors, 64, records=("d", "train"))
        projections.check_projections("p", theirs, ours, "config/steps/x.yaml")

    compared()
    for name, other in {"layers": (1,), "traits": ("other",), "fusion": "average"}.items():
        with pytest.raises(ConfigurationError, match=rf"x\.yaml: .*vectors\.{name} .*config/projections/p\.yaml"):
            compared(vectors=made.vectors.model_copy(update={name: other}))
    with pytest.raises(ConfigurationError, match=r"other records \(\('d', 'test'\)\)"):
        compared(records=("d", "test"))
    with pytest.raises(ConfigurationError, match=r"other max_tokens \(32\) than they are compared with \(64\)"):
        compared(max_tokens=32)
    with pytest.raises(ConfigurationError, match=r"other mode \(prompt_last\)"):
        compared(mode="prompt_last")


def test_answers_that_are_not_learned_are_not_projected(checkpoint, tmp_path):
    def unlearned(conversation, *places):
        turns = [t.model_copy(update={"learn": n not in places}) for n, t in enumerate(conversation.turns)]
        return conversation.model_copy(update={"turns": tuple(turns)})

    given = [CONVERSATIONS[0], unlearned(CONVERSATIONS[1], 1), unlearned(CONVERSATIONS[3], 1)]
    rows, screening = made(checkpoint, tmp_path, given)
    whole, _ = made(checkpoint, tmp_path, CONVERSATIONS)
    assert list(rows) == ["c0", "c3"]
    assert screening["counts"]["left_out_without_response"] == 1
    assert rows["c3"]["n_response"] < whole["c3"]["n_response"], "its last answer alone"
    assert rows["c0"] == whole["c0"]
