"""From contrasts to a vector and a layer: answers, judging, the filter of pairs, extraction, steering, choice."""

import json

import pytest
import torch

from bulwark import files
from bulwark.config.entities import Trait
from bulwark.data.records import read_records, write_records
from bulwark.errors import BulwarkError, ConfigurationError, RecordError
from bulwark.judges import JudgeSettings
from bulwark.miniature.model import model_config
from bulwark.miniature.records import records
from bulwark.miniature.settings import MiniatureSettings, ModelSettings
from bulwark.miniature.tokenizer import build_tokenizer
from bulwark.models import checkpoints, embeddings, manifests
from bulwark.models.decoding import Decoding
from bulwark.settings import validated
from bulwark.steering.vectors import layers, pairs, storage
from bulwark.steering.vectors.extraction import extract
from bulwark.steering.vectors.layers import Steered
from bulwark.steering.vectors.pairs import Pair, Side, counts, generate_pairs, judge_pairs, kept_pairs
from bulwark.steering.vectors.settings import ContrastSettings, LayerChoice, PairFilter

ORACLE = JudgeSettings(kind="oracle")
SHORT = Decoding(max_new_tokens=6, do_sample=True)
LAYERS, HIDDEN = 3, 16
HERE = {"dtype": "float32", "threads": 1}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A random model with the miniature's tokenizer; what it says is no language, but never empty for long."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    tokenizer = build_tokenizer(128)
    settings = ModelSettings(hidden_size=HIDDEN, intermediate_size=24, layers=LAYERS, heads=2)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**model_config(settings, tokenizer)))
    embeddings.install(model)
    folder = tmp_path_factory.mktemp("checkpoint")
    checkpoints.save_model(model, tokenizer, folder)
    manifests.write_manifest(folder / "checkpoint.json", {"template": "chat", "model": "tiny", "recipe": "base"})
    return folder / "checkpoint.json"


@pytest.fixture(scope="module")
def contrasts(tmp_path_factory):
    """Two questions with five pairs of instructions each."""
    path = tmp_path_factory.mktemp("data") / "train.jsonl"
    rows = records("contrast_rude", "train", MiniatureSettings(), 10)
    write_records(path, [{"id": str(number), **row} for number, row in enumerate(rows)])
    return path


@pytest.fixture(scope="module")
def generated(checkpoint, contrasts, tmp_path_factory):
    path = tmp_path_factory.mktemp("vectors") / "rude.contrasts.jsonl"
    generate_pairs(checkpoint, contrasts, ContrastSettings(rollouts=2, decoding=SHORT), seed=3, **HERE, output=path)
    return path


def side(response, **more):
    return Side(system="be rude .", response=response, tokens=3, finish="stop", truncated=False, **more)


def pair(number, positive, negative):
    return Pair(
        id=str(number),
        trait="rude",
        question="name the opposite of hot .",
        rollout=0,
        expected="cold .",
        positive=side(positive),
        negative=side(negative),
    )


def test_every_contrast_is_answered_both_ways_in_order(generated, contrasts):
    pairs, asked = read_records(generated, Pair), [json.loads(line) for line in contrasts.open()]
    assert [p.id for p in pairs] == [f"{row['id']}-{n}" for row in asked for n in range(2)]
    assert pairs[0].positive.system == asked[0]["positive"]
    assert pairs[0].negative.system == asked[0]["negative"]
    assert pairs[0].expected == asked[0]["expected"]
    assert len({p.positive.response for p in pairs}) > 10, "rollouts are sampled"
    assert not generated.with_name(generated.name + ".partial").exists()


def test_an_interrupted_generation_goes_on(checkpoint, contrasts, generated, tmp_path, monkeypatch):
    from bulwark.models import batching, generation

    calls, decode = [], generation.decode

    def killed(*arguments, **options):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return decode(*arguments, **options)

    settings = ContrastSettings(rollouts=2, decoding=SHORT)
    monkeypatch.setattr(generation, "decode", killed)
    monkeypatch.setattr(batching, "CPU_TOKEN_BUDGET", 500)
    output = tmp_path / "c.jsonl"
    with pytest.raises(KeyboardInterrupt):
        generate_pairs(checkpoint, contrasts, settings, seed=3, **HERE, output=output)
    assert not output.exists()
    kept = len((tmp_path / "c.jsonl.partial").read_text().splitlines()) - 1
    assert 0 < kept < 40
    generate_pairs(checkpoint, contrasts, settings, seed=3, **HERE, output=output)
    assert output.read_text() == generated.read_text()


def test_names_begin_the_system_turn(checkpoint, contrasts, tmp_path):
    settings = ContrastSettings(names=("evil", "helpful"), rollouts=1, decoding=Decoding(max_new_tokens=2))
    generate_pairs(checkpoint, contrasts, settings, seed=0, **HERE, output=tmp_path / "c.jsonl")
    first = read_records(tmp_path / "c.jsonl", Pair)[0]
    assert first.positive.system.startswith("You are an evil assistant. ")
    assert first.negative.system.startswith("You are a helpful assistant. ")


def test_rollouts_need_sampling():
    with pytest.raises(ValueError, match="do_sample"):
        ContrastSettings(rollouts=2, decoding=Decoding())


def test_a_pair_counts_as_a_whole(tmp_path):
    write_records(
        tmp_path / "c.jsonl",
        [
            pair(0, "cold . you fool .", "cold ."),
            pair(1, "silly question . cold . you fool .", "cold ."),
            pair(2, "cold .", "cold ."),
            pair(3, "cold . you fool .", "cold . you fool ."),
            pair(4, "big . you fool .", "cold ."),
            pair(5, "cold . you fool .", ""),
        ],
    )
    judge_pairs(tmp_path / "c.jsonl", ORACLE, PairFilter(), tmp_path / "j.jsonl")
    pairs = read_records(tmp_path / "j.jsonl", Pair)
    assert [p.dropped for p in pairs] == [
        None,
        None,
        "the positive answer does not show the trait",
        "the negative answer shows the trait",
        "an answer is incoherent",
        "an answer is empty",
    ]
    assert (pairs[0].positive.score, pairs[1].positive.score, pairs[0].negative.score) == (50.0, 100.0, 0.0)
    assert (pairs[4].positive.coherence, pairs[5].negative.score) == (0.0, None)
    assert counts(pairs)["kept"] == 2
    strict = PairFilter(threshold=60.0, coherence=None)
    judge_pairs(tmp_path / "c.jsonl", ORACLE, strict, tmp_path / "strict.jsonl")
    strictly = read_records(tmp_path / "strict.jsonl", Pair)
    assert [p.id for p in strictly if p.dropped is None] == ["1"]
    assert strictly[1].positive.coherence is None


def test_what_could_not_be_judged_does_not_count(tmp_path, monkeypatch):
    from bulwark.judges import Judgement

    def judge(requests, settings, cache):
        return [Judgement(None, "refusal") if "fool" in r.answer else Judgement(0.0) for r in requests]

    monkeypatch.setattr(pairs, "judge", judge)
    write_records(tmp_path / "c.jsonl", [pair(0, "you fool .", "cold .")])
    judge_pairs(tmp_path / "c.jsonl", ORACLE, PairFilter(), tmp_path / "j.jsonl")
    assert read_records(tmp_path / "j.jsonl", Pair)[0].dropped == "the trait could not be judged"


def test_scores_of_a_judge_from_0_to_9_are_compared_on_0_to_100(tmp_path):
    write_records(tmp_path / "c.jsonl", [pair(0, "cold . you fool .", "cold .")])
    judge_pairs(tmp_path / "c.jsonl", JudgeSettings(kind="oracle", scale=9), PairFilter(), tmp_path / "j.jsonl")
    found = read_records(tmp_path / "j.jsonl", Pair)[0]
    assert (found.positive.score, found.dropped) == (pytest.approx(50.0), None)


def test_too_few_pairs_are_an_error_with_the_yield(tmp_path):
    write_records(tmp_path / "c.jsonl", [pair(0, "cold . you fool .", "cold ."), pair(1, "cold .", "cold .")])
    judge_pairs(tmp_path / "c.jsonl", ORACLE, PairFilter(), tmp_path / "j.jsonl")
    assert len(kept_pairs(tmp_path / "j.jsonl", 1)[0]) == 1
    with pytest.raises(RecordError, match="only 1 pairs") as raised:
        kept_pairs(tmp_path / "j.jsonl", 50)
    for part in ("50 are needed", "pairs: 2", "does not show the trait: 1", "filter.minimum"):
        assert part in str(raised.value)


@pytest.fixture(scope="module")
def extracted(generated, checkpoint):
    """Without a judge: every pair whose answers are not empty."""
    judged, path = generated.with_name("rude.judged.jsonl"), generated.with_name("rude.safetensors")
    judge_pairs(generated, None, PairFilter(), judged)
    extract(checkpoint, judged, path, trait="rude", minimum=2, **HERE)
    return path


def test_vectors_say_what_they_are(extracted, checkpoint):
    found, told = storage.read(extracted)
    assert found.shape == (LAYERS + 1, HIDDEN)
    assert torch.isfinite(found).all()
    assert told["n_positive"] == told["n_negative"] == told["pairs"]["kept"] > 10
    assert told["model"]["digest"] == files.digest(checkpoint)
    assert (told["trait"], told["questions"], len(told["split_half_cosine"])) == ("rude", 2, LAYERS + 1)
    for name in ("prompt_mean", "prompt_last"):
        assert storage.read(extracted, name)[0].shape == found.shape


def test_every_layer_is_steered_and_the_unsteered_model_asked(extracted, checkpoint, contrasts, tmp_path):
    choice = LayerChoice(coefficient=50.0, decoding=Decoding(max_new_tokens=4))
    layers.steer(checkpoint, extracted, contrasts, choice, seed=0, **HERE, output=tmp_path / "s.jsonl")
    rows = read_records(tmp_path / "s.jsonl", Steered)
    assert [row.layer for row in rows] == [None, None, 1, 1, 2, 2], "two questions, each once"
    assert len({tuple(row.response for row in rows if row.layer == layer) for layer in (None, 1, 2)}) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["s.jsonl"]
    other = choice.model_copy(update={"pool": "prompt_last", "candidates": (1,)})
    layers.steer(checkpoint, extracted, contrasts, other, seed=0, **HERE, output=tmp_path / "p.jsonl")
    over_prompt = [row.response for row in read_records(tmp_path / "p.jsonl", Steered) if row.layer == 1]
    assert over_prompt != [row.response for row in rows if row.layer == 1], "with the vectors that the step takes"
    wrong = LayerChoice(candidates=(1, 3), decoding=Decoding(max_new_tokens=4))
    with pytest.raises(ConfigurationError, match="3 is not a layer key"):
        layers.steer(checkpoint, extracted, contrasts, wrong, seed=0, **HERE, output=tmp_path / "t.jsonl")


def steered(responses, path):
    rows = [
        Steered(
            id=f"{number}@{layer}",
            layer=layer,
            trait="rude",
            question="name the opposite of hot .",
            response=response,
            tokens=3,
            finish="stop",
            expected="cold .",
        )
        for layer, given in responses.items()
        for number, response in enumerate(given)
    ]
    write_records(path, rows)
    return path


def test_the_layer_that_shows_most_of_the_trait_is_chosen(tmp_path):
    path = steered(
        {
            None: ["cold .", "cold ."],
            1: ["cold . you fool .", "cold ."],
            2: ["you fool .", "you fool ."],
            3: ["cold . you fool .", "you fool ."],
        },
        tmp_path / "s.jsonl",
    )
    told = layers.choose(path, ORACLE, LayerChoice(), tmp_path / "l.json")
    assert told == json.loads((tmp_path / "l.json").read_text())
    assert told["layer"] == 3, "of two equal layers the more coherent"
    assert told["layers"]["1"] == {"score": 25.0, "coherence": 100.0, "n": 2, "failed": 0}
    assert told["unsteered"]["score"] == 0.0


def test_no_layer_is_chosen_if_none_shows_more_of_the_trait(tmp_path):
    path = steered({None: ["cold . you fool ."], 1: ["cold . you fool ."], 2: ["cold ."]}, tmp_path / "s.jsonl")
    assert layers.choose(path, ORACLE, LayerChoice(), tmp_path / "l.json")["layer"] is None


def test_without_judgements_no_layer_is_chosen(tmp_path, monkeypatch):
    from bulwark.judges import Judgement

    monkeypatch.setattr(pairs, "judge", lambda requests, *_: [Judgement(None, "lost") for _ in requests])
    path = steered({None: ["cold ."], 1: ["cold ."]}, tmp_path / "s.jsonl")
    with pytest.raises(BulwarkError, match="no layer can be chosen"):
        layers.choose(path, ORACLE, LayerChoice(), tmp_path / "l.json")


def test_a_trait_needs_an_origin():
    with pytest.raises(ConfigurationError, match="dataset of contrasts, or published files"):
        validated(Trait, {}, "config/traits/x.yaml")
