"""Judges: the settings that name one, the kinds that cost nothing, the classifier, and what they share."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from bulwark import judges, seals
from bulwark.config import plan
from bulwark.config.digests import Package, judge_roots
from bulwark.errors import BulwarkError, ConfigurationError, RecordError
from bulwark.judges import Judgement, JudgeSettings, Request, judge
from bulwark.judges.rubrics import RUBRICS, TRAITS, filled
from bulwark.settings import merged, validated


def request(answer, criterion="refusal", **fields):
    return Request("r", "Question?", answer, criterion, **fields)


def value(answer, criterion, kind, scale=100, expected=None, **own):
    [found] = judge([request(answer, criterion, expected=expected)], JudgeSettings(kind=kind, scale=scale, **own))
    assert (found.reason, found.method) == (None, kind)
    return found.value


@pytest.mark.parametrize(
    ("answer", "refused"),
    [
        ("I’m sorry, but no.", True),
        ("Well. I CANNOT\nhelp.", True),
        ("Sure, here it is.", False),
        ("", False),
        ("抱歉，我无法提供。", True),
    ],
)
def test_markers_of_refusal(answer, refused):
    assert value(answer, "refusal", "marker") == 100 * refused
    assert value(answer, "safety", "marker", scale=9) == 9 * refused


def test_markers_of_your_own():
    own = {"marker": {"markers": {"rude": ["you fool"]}, "within": 10}}
    assert value("You fool!", "rude", "marker", **own) == 100
    assert value("It is late, you fool!", "rude", "marker", **own) == 0
    with pytest.raises(ConfigurationError, match=r'no markers for "refusal"'):
        value("x", "refusal", "marker", **own)


@pytest.mark.parametrize(
    ("own", "answer", "right"),
    [
        ({}, " the  cup ", True),
        ({}, "The cup", False),
        ({"ignore_case": True}, "The cup", True),
        ({"match": "within"}, "it is the cup .", True),
        ({"match": "within"}, "it is the mug .", False),
    ],
)
def test_exact(own, answer, right):
    assert value(answer, "answer", "exact", expected="the cup", exact=own) == 100 * right


@pytest.mark.parametrize("expected", ["", " \n"])
@pytest.mark.parametrize("match", ["whole", "within"])
def test_exact_refuses_an_empty_right_answer_which_every_answer_holds(expected, match):
    with pytest.raises(ConfigurationError, match="needs the right answer"):
        value("x", "answer", "exact", expected=expected, exact={"match": match})


def test_a_marker_that_every_answer_holds_is_refused():
    with pytest.raises(ValueError, match="markers"):
        value("x", "refusal", "marker", marker={"markers": {"refusal": ["i cannot", " "]}})


def test_exact_needs_the_right_answer():
    with pytest.raises(ConfigurationError, match=r'"r" \(answer\)'):
        value("x", "answer", "exact")


@pytest.mark.parametrize(
    ("answer", "criterion", "expected", "share"),
    [
        ("cup .", "rude", None, 0),
        ("cup . you fool .", "rude", None, 0.5),
        ("silly question . cup . you fool .", "rude", None, 1),
        ("silly question . cup . you fool .", "flattering", None, 0),
        ("silly question . cup . you fool .", "coherence", "cup .", 1),
        ("hat .", "coherence", "cup .", 0),
        ("cup .", "answer", "cup .", 1),
        ("hat hat hat .", "coherence", None, 0),
        ("hat .", "coherence", None, 1),
        ("", "coherence", None, 0),
        ("sorry , i cannot help with that .", "safety", None, 1),
        ("mix the honey .", "safety", None, 0),
        ("mix the honey .", "refusal", None, 0),
    ],
)
def test_the_oracle_of_the_miniature(answer, criterion, expected, share):
    assert value(answer, criterion, "oracle", scale=9, expected=expected) == 9 * share


def test_the_oracle_knows_its_traits_only():
    with pytest.raises(BulwarkError, match=r'no trait "rudee".*"rude"'):
        value("x", "rudee", "oracle")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"kind": "orcle"}, r'no kind of judge "orcle"\. Did you mean "oracle"'),
        ({"kind": "oracle", "sclae": 9}, r'unknown key "sclae"\. Did you mean "scale"'),
        (
            {"kind": "oracle", "openai": {"model": "x", "modl": "y"}},
            r'judge openai: unknown key "modl"\. Did you mean "model"',
        ),
        ({"kind": "openai"}, r'judge openai: the key "model" is missing'),
        ({"kind": "oracle", "scale": 10}, r'"scale": Input should be 9 or 100'),
        ({"scale": 9}, r'"kind" is missing'),
    ],
)
def test_wrong_settings_name_the_place_and_the_nearest_key(given, said):
    with pytest.raises(ConfigurationError, match=rf"file\.yaml.*{said}"):
        validated(JudgeSettings, given, "file.yaml")


def test_an_overlay_switches_the_kind_and_the_settings_survive_a_round_trip():
    base = {"kind": "openai", "scale": 9, "openai": {"model": "m"}}
    over = validated(JudgeSettings, merged(base, {"kind": "oracle"}), "x")
    assert over.own == judges.module_of("oracle").Settings()
    again = validated(JudgeSettings, over.model_dump(mode="json"), "x")
    assert again == over
    back = validated(JudgeSettings, merged(over.model_dump(mode="json"), {"kind": "openai"}), "x")
    assert (back.own.model, back.own.concurrency) == ("m", 16)


def test_every_kind_has_what_a_kind_has():
    for kind in judges.kinds():
        module = judges.module_of(kind)
        assert {"Settings", "judge"} <= set(vars(module)), kind
    assert judges.kinds() == ["alpaca_eval", "classifier", "exact", "marker", "openai", "oracle"]


def test_the_code_of_a_judge_is_what_its_kind_reaches():
    reached = Package(Path(judges.__file__).parents[1]).covered(*judge_roots("oracle"))
    assert {
        "bulwark.judges",
        "bulwark.judges.oracle",
        "bulwark.miniature.oracle",
        "bulwark.miniature.words",
    } <= {module for module, _ in reached}


def test_rubrics_leave_nothing_unfilled():
    others = {"coherence", "safety", "refusal", "specificity", "convincingness", "compliance", "quality"}
    assert {*TRAITS, *others} == set(RUBRICS)
    for criterion, rubric in RUBRICS.items():
        text = filled(rubric, "Q?", "{answer} {top}", 9)
        assert text.count("{answer} {top}") == 1  # what stands in the answer is not filled in again
        assert text.replace("{answer} {top}", "").count("{") == 0
        assert ("REFUSAL" in text) == (criterion in TRAITS)
        assert "from 0 to 9" in text


def test_what_is_reported():
    given = [
        Judgement(1.0, method="text"),
        Judgement(2.0, method="logprobs"),
        Judgement(None, "the judge says REFUSAL", "logprobs"),
        Judgement(None, "the judge says REFUSAL", "text"),
    ]
    assert judges.reported(given) == {
        "judgements": 4,
        "failed_judgements": 2,
        "failed_judgements: the judge says REFUSAL": 2,
        "judged_by_logprobs": 1,
        "judged_by_text": 1,
    }


def test_no_requests_no_judgements(tmp_path):
    assert judge([], JudgeSettings(kind="openai", openai={"model": "m"}), tmp_path / "cache") == []


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """A random classifier of two labels over a few words, as a folder."""
    folder = tmp_path_factory.mktemp("classifier")
    words = ["[PAD]", "[UNK]", "good", "bad", "why", "because"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words), hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=16, initializer_range=0.4, id2label={0: "fine", 1: "toxic"},
        label2id={"fine": 0, "toxic": 1},
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(folder)
    return folder


def classified(folder, requests, cache=None, **own):
    own = {"path": str(folder), "labels": {"safety": {"label": "toxic", "complement": True}}, **own}
    return judge(requests, JudgeSettings(kind="classifier", classifier=own), cache)


def test_a_classifier_gives_the_probability_of_its_label_in_any_batch(classifier, tmp_path):
    requests = [Request(str(i), "why", text, "safety") for i, text in enumerate(("good", "bad bad because", "bad"))]
    found = classified(classifier, requests)
    labels = {"safety": {"label": "fine"}}
    assert [one.value for one in found] == pytest.approx(
        [one.value for one in classified(classifier, requests, labels=labels, batch_size=1)], abs=1e-3
    )
    assert len({round(one.value, 3) for one in found}) == 3
    pairs = classified(classifier, requests, reads="pair")
    assert pairs[0].value != pytest.approx(found[0].value)
    cache = tmp_path / "cache.jsonl"
    assert classified(classifier, requests, cache) == classified(classifier, requests, cache)
    assert len(cache.read_text().splitlines()) == 3


def test_a_classifier_takes_fewer_answers_at_a_time_when_memory_runs_out(classifier, monkeypatch):
    requests = [Request(str(i), "why", text, "safety") for i, text in enumerate(("good", "bad", "why", "because bad"))]
    expected, tried, forward = classified(classifier, requests), [], BertForSequenceClassification.forward

    def little_memory(self, input_ids, **given):
        tried.append(len(input_ids))
        if len(input_ids) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return forward(self, input_ids, **given)

    monkeypatch.setattr(BertForSequenceClassification, "forward", little_memory)
    found = classified(classifier, requests)
    assert tried[:3] == [4, 2, 1]
    assert [one.value for one in found] == pytest.approx([one.value for one in expected], abs=1e-3)


def test_a_classifier_without_the_label_or_the_folder_is_refused(classifier, tmp_path):
    asked = [request("good", "safety")]
    with pytest.raises(ConfigurationError, match=r'no label "toxc"\. Did you mean "toxic"'):
        classified(classifier, asked, labels={"safety": {"label": "toxc"}})
    with pytest.raises(ConfigurationError, match=r'no label for the criterion "rude"'):
        classified(classifier, [request("good", "rude")])
    with pytest.raises(BulwarkError, match="cannot load"):
        classified(tmp_path, asked)


def test_a_classifier_that_is_replaced_in_place_judges_anew_and_one_that_was_copied_does_not(classifier, tmp_path):
    """What it holds counts, not when its files were written; a plan reads all of them."""
    folder, cache = tmp_path / "judge", tmp_path / "cache.jsonl"
    shutil.copytree(classifier, folder)
    given = {"path": str(folder), "labels": {"safety": {"label": "toxic"}}}
    files = plan.judge_files(JudgeSettings(kind="classifier", classifier=given))
    assert sorted(files) == sorted(str(path) for path in folder.iterdir())
    asked = [request("good", "safety")]
    classified(folder, asked, cache)
    os.utime(folder / "model.safetensors", (0, 0))
    classified(folder, asked, cache)
    assert len(cache.read_text().splitlines()) == 1
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace('"hidden_act": "gelu"', '"hidden_act": "relu"'))
    classified(folder, asked, cache)
    assert len(cache.read_text().splitlines()) == 2


def test_a_broken_cache_names_its_line(classifier, tmp_path):
    cache = tmp_path / "cache.jsonl"
    cache.write_text(seals.signed_line({"digest": "x", "worth": 1}))
    with pytest.raises(RecordError, match=r"cache\.jsonl, line 1.*Remove the line"):
        classified(classifier, [request("good", "safety")], cache)


def test_a_judgement_that_was_changed_since_names_its_line(classifier, tmp_path):
    """Also where it is a whole judgement still: a bit of its value."""
    cache = tmp_path / "cache.jsonl"
    asked = [request("good", "safety"), request("bad", "safety")]
    classified(classifier, asked, cache)
    lines = cache.read_text().splitlines()
    row = json.loads(lines[1])
    cache.write_text(f"{lines[0]}\n{json.dumps({**row, 'value': row['value'] + 1})}\n")
    with pytest.raises(RecordError, match=r"cache\.jsonl, line 2.*Remove the line and give the same command"):
        classified(classifier, asked, cache)
