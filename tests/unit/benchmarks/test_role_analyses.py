"""The analyses of ASIDE as benchmarks, over a tiny model: planted answers, no leakage, and how they are scored."""

import json
from pathlib import Path

import pytest
import torch
from examinee_samples import V, examinee, tiny_aside
from score_samples import sep_record, write_lines
from tiny_tokenizers import tiny_tokenizer

from bulwark.benchmarks import benchmark_of, sep, separability
from bulwark.data.records import Conversation, Turn
from bulwark.errors import ConfigurationError, RecordError
from bulwark.evaluation.examinee import Examinee
from bulwark.models import checkpoints, manifests
from bulwark.models.answers import Answer
from bulwark.models.embeddings import install

WORDS = ["red", "green", "blue", "cup", "tree", "sky", "sun", "moon", "dog", "cat"]
DECODING = {"max_new_tokens": 4}


def conversation(number: int, **more) -> dict:
    """Instruction and data of the same words in two orders, so that no word tells which it is."""
    words = [WORDS[(number * step) % 10] for step in (1, 3, 7, 9)]
    turns = [
        {"role": "instruction", "text": f"{' '.join(words)} {number}"},
        {"role": "data", "text": f"{' '.join(reversed(words))} {number}"},
        {"role": "response", "text": "yes"},
    ]
    return {"id": f"c{number}", "turns": turns, **more}


def vanilla():
    model = tiny_aside()
    install(model, {"method": "vanilla"})
    return model


def saved(folder: Path, model) -> Path:
    checkpoints.save_model(model, tiny_tokenizer("chatml"), folder)
    manifests.write_manifest(
        folder / "checkpoint.json", {"model": "tiny", "recipe": "x", "seed": 0, "template": "chat"}
    )
    return folder / "checkpoint.json"


def sep_file(folder: Path, count: int = 12) -> Path:
    """Records with the probe at the end of the data that their `appended_type` says."""
    rows = []
    for index in range(count):
        row = sep_record(index)
        if row["info"]["appended_type"][1] == "l":
            probe = row["prompt_instructed"].removeprefix(f"{row['prompt_clean']} ")
            row["prompt_instructed"] = f"{probe} {row['prompt_clean']}"
        rows.append(row)
    return write_lines(folder / "sep.jsonl", rows)


def sep_record_of(side: str, **changes) -> sep.Record:
    record = sep_record(0)
    record["info"]["appended_type"] = side
    return sep.Record(**{**record, **changes})


def run(chosen, folder: Path, path: Path, model=None, **options):
    """The lines and rows of a benchmark over a file."""
    records = chosen.load(path)
    lines = chosen.answers(examinee(folder, model, **options), records)
    answers: dict[str, dict[str, str]] = {}
    for line in lines:
        answers.setdefault(line["id"], {})[line["variant"]] = line["response"]
    assert {key: set(said) for key, said in answers.items()} == {r.id: set(chosen.variants(r)) for r in records}
    return lines, [{"id": record.id, **chosen.score(record, answers[record.id])} for record in records]


# --- separability


@pytest.fixture(scope="module")
def conversations(tmp_path_factory):
    return write_lines(tmp_path_factory.mktemp("c") / "c.jsonl", [conversation(number) for number in range(40)])


def separable(tmp_path, conversations, model=None, **settings):
    chosen = benchmark_of("separability", {"records": 40, "injected": 0.0, "epochs": 5, **settings})
    _, rows = run(chosen, tmp_path, conversations, model)
    return rows, chosen.aggregate(rows)


def test_roles_are_separable_at_the_embeddings_with_the_rotation_only(tmp_path, conversations):
    """Embeddings with something in common, as trained ones have, which the rotation turns."""
    turned, plain = tiny_aside(), vanilla()
    for model in (turned, plain):
        model.get_input_embeddings().weight.data[:, ::2] += 2.0
    rows, rotated = separable(tmp_path / "a", conversations, turned)
    assert rotated["matched_0"]["value"] == rotated["accuracy_0"]["value"] == 1.0
    assert rotated["matched_0"]["n"] == 12  # 30 % of 40 prompts
    assert {"matched_1", "matched_2", "accuracy_2", "matched_mean"} < set(rotated)
    assert "matched_3" not in rotated
    _, unturned = separable(tmp_path / "b", conversations, plain)
    assert unturned["matched_0"]["value"] == pytest.approx(0.5, abs=0.12)
    assert sum(row["matched_0"] is None for row in rows) == 28


def test_words_help_in_the_accuracy_and_not_where_they_are_matched(tmp_path):
    """Half of the words stand in instructions only, the other half in both, for a model without roles."""

    def row(number):
        own, both = WORDS[number % 4], WORDS[4 + number % 3]
        said = conversation(number)
        said["turns"][0]["text"] = f"{own} {both} {own} {both}"
        said["turns"][1]["text"] = f"{both} {WORDS[7 + number % 3]} {both}"
        return said

    path = write_lines(tmp_path / "c.jsonl", [row(number) for number in range(40)])
    _, found = separable(tmp_path, path, vanilla())
    assert found["matched_0"]["value"] == pytest.approx(0.5, abs=0.12)
    assert found["accuracy_0"]["value"] > 0.65


def test_of_a_prompt_both_roles_count_the_same():
    token = separability.Benchmark  # the rule, by hand: 3 of 4 instruction tokens and 1 of 2 data tokens are right
    assert token.schema is Conversation
    from bulwark.interpretability.samples import Token

    tested = [Token(1, place, 0, int(place < 4)) for place in range(6)] + [Token(2, 0, 0, 1)]
    right = [True, True, True, False, True, False, True]
    assert separability._by_prompt(tested, right, 3) == [None, pytest.approx((3 / 4 + 1 / 2) / 2), None]


def test_no_text_of_a_training_prompt_is_in_a_held_out_one(conversations):
    chosen = benchmark_of("separability", {"records": 40, "injected": 1.0})
    records = chosen.load(conversations)
    held, training = records[:12], records[12:]
    originals = {f"c{number}": conversation(number)["turns"] for number in range(40)}
    assert {record.id for record in held} | {record.id for record in training} == set(originals)
    for side in (held, training):
        instructions = {originals[record.id][0]["text"] for record in side}
        for record in side:
            before = originals[record.id][1]["text"]
            assert record.turns[1].text.startswith(f"{before} ")
            assert record.turns[1].text.removeprefix(f"{before} ") in instructions - {record.turns[0].text}
    half = benchmark_of("separability", {"records": 40, "injected": 0.5}).load(conversations)
    assert sum(record.turns[1].text != originals[record.id][1]["text"] for record in half) == 20


def test_probes_are_trained_on_other_prompts_unless_the_published_split_is_asked_for(
    tmp_path, conversations, monkeypatch
):
    from bulwark.interpretability import probes

    seen = []

    def recorded(model, prompts, training, tested, rows, pad_id, **options):
        seen.append(({token.prompt for token in training}, {token.prompt for token in tested}))
        return {row: [True] * len(tested) for row in rows}

    monkeypatch.setattr(probes, "accuracies", recorded)
    separable(tmp_path, conversations)
    assert len(seen) == 2
    assert all(not training & tested for training, tested in seen)
    seen.clear()
    separable(tmp_path, conversations, split="tokens_as_published")
    assert all(len(training & tested) > 20 for training, tested in seen)


def test_records_without_an_instruction_and_data_are_left_out(tmp_path):
    bare = {"id": "bare", "turns": conversation(0)["turns"][::2]}
    path = write_lines(tmp_path / "c.jsonl", [bare, *(conversation(number) for number in range(4))])
    assert {r.id for r in benchmark_of("separability", {"records": 4}).load(path)} == {"c0", "c1", "c2", "c3"}
    with pytest.raises(RecordError, match="has 4 records that can be used; 5 are asked for"):
        benchmark_of("separability", {"records": 5}).load(path)


# --- SEP's probe


@pytest.mark.parametrize(("side", "text"), [("lr", "Text. Say it."), ("rl", "Say it. Text.")])
def test_the_probe_is_what_is_not_the_clean_data(side, text):
    record = sep_record_of(side, prompt_clean="Text.", prompt_instructed=text)
    assert sep.probe_of(record) == ("Say it.", side[1] == "r")


@pytest.mark.parametrize(("side", "text"), [("lr", "Say it. Text."), ("rl", "Text. Say it."), ("lr", "Text.")])
def test_a_probe_that_is_not_where_the_record_says_is_an_error(side, text):
    with pytest.raises(RecordError, match='"sep-0000": prompt_instructed is not prompt_clean with a probe'):
        sep.probe_of(sep_record_of(side, prompt_clean="Text.", prompt_instructed=text))


# --- the intervention


def test_a_record_is_answered_as_data_as_an_instruction_and_with_the_control(tmp_path):
    chosen = benchmark_of("intervention", {"decoding": DECODING, "records": 6})
    lines, rows = run(chosen, tmp_path / "a", sep_file(tmp_path))
    assert [line["variant"] for line in lines[:3]] == ["as_data", "as_instruction", "elsewhere"]
    said = {(line["id"], line["variant"]): line["response"] for line in lines}
    assert any(said[row["id"], "as_data"] != said[row["id"], "as_instruction"] for row in rows)
    plain, _ = run(chosen, tmp_path / "b", sep_file(tmp_path), vanilla())
    by_record = {}
    for line in plain:
        by_record.setdefault(line["id"], set()).add(line["response"])
    assert all(len(answers) == 1 for answers in by_record.values()), "a vanilla embedding knows no roles"


def test_each_variant_gives_its_own_tokens_the_role_of_an_instruction(tmp_path):
    chosen = benchmark_of("intervention", {"decoding": DECODING, "records": 6})
    records, asked = chosen.load(sep_file(tmp_path)), []

    class Recorded(Examinee):
        def generate(self, prompts, decoding):
            asked.extend(prompts)
            return [Answer(key, "", 1, "stop", False) for key, _ in prompts]

    own = examinee(tmp_path)
    chosen.answers(Recorded(**vars(own)), records)
    for number, record in enumerate(records):
        prompt, probe = sep.prompt_and_probe(record, own.builder)
        as_data, as_instruction, control = (
            {place for place, role in enumerate(changed.roles) if role != prompt.roles[place]}
            for _, changed in asked[3 * number : 3 * number + 3]
        )
        assert (as_data, as_instruction) == (set(), set(probe))
        assert control
        assert not control & set(probe)


def test_the_effect_is_the_difference_record_by_record():
    chosen = benchmark_of("intervention", {"decoding": DECODING})
    record = sep_record_of("lr")
    texts = {"as_data": "nothing", "as_instruction": "the ROOT", "elsewhere": "nothing"}
    row = chosen.score(record, texts)
    assert (row["execution_as_data"], row["execution_as_instruction"], row["effect"]) == (0, 1, 1)
    assert row["effect_elsewhere"] == 0
    back = chosen.score(record, {"as_data": "root", "as_instruction": "no", "elsewhere": "no"})
    assert (back["effect"], back["effect_elsewhere"]) == (-1, -1)
    metrics = chosen.aggregate([row, row, back, back])
    assert metrics["effect"]["value"] == 0
    assert metrics["effect"]["higher_is_better"] is None
    assert metrics["execution_as_data"]["higher_is_better"] is False


# --- the concept


def concept(**settings):
    return benchmark_of("concept", {"texts": "x", "layers": [1], "count": 20, "records": 6, **settings})


def test_activations_are_products_with_a_probe_that_tells_instructions(tmp_path, conversations):
    chosen = concept(layers=[0, 1])
    model = tiny_aside()
    inputs = {"texts": conversations}
    asked = examinee(tmp_path, model, inputs=inputs)
    layer, weights, accuracy = chosen._probe(asked)
    assert layer == 0
    assert set(accuracy) == {"0", "1"}
    assert accuracy["0"]["validation"] == accuracy["0"]["test"] == 1.0, "the rotation tells them at the embeddings"
    _, rows = run(chosen, tmp_path, sep_file(tmp_path), model, inputs=inputs)
    record = next(r for r in chosen.load(sep_file(tmp_path)) if r.id == rows[0]["id"])
    prompt, probe = sep.prompt_and_probe(record, asked.builder)
    with torch.inference_mode():
        embedded = model.get_input_embeddings()(torch.tensor(prompt.ids)).double()
    spans = [place for span in prompt.spans for place in range(span.start, span.end)]
    assert [value for _, _, value in rows[0]["tokens"]] == pytest.approx(
        (embedded[spans].numpy() @ weights).tolist(), rel=1e-3
    )
    parts = [part for _, part, _ in rows[0]["tokens"]]
    assert [place for place, part in zip(spans, parts, strict=True) if part == "probe"] == probe
    assert parts[0] == "instruction"
    assert "".join(text for text, _, _ in rows[0]["tokens"]).replace(" ", "").startswith("Summarisetext")


def test_a_text_stands_alone_in_its_slot_of_the_template(tmp_path, conversations):
    """With ASIDE's own template, too, in which an instruction has "No input", and a text no instruction."""
    asked = examinee(tmp_path, inputs={"texts": conversations}, template="alpaca")
    _, _, accuracy = concept(layers=[0])._probe(asked)
    assert accuracy["0"]["test"] == 1.0


def test_data_that_the_template_replaces_are_no_text_of_the_probe(tmp_path):
    """ASIDE's published template writes "No input" in the place of a single character."""
    rows = [conversation(number) for number in range(22)]
    for row in rows[:2]:
        row["turns"][1]["text"] = "7"
    asked = examinee(
        tmp_path, inputs={"texts": write_lines(tmp_path / "c.jsonl", rows)}, template="alpaca_as_published"
    )
    assert len(concept()._texts(asked.inputs["texts"], 2)) == 20
    with pytest.raises(RecordError, match="has 20 records that can be used; 21 are asked for"):
        concept(count=21)._probe(asked)


def test_shares_are_of_tokens_above_zero_and_are_broken_down_by_what_was_carried_out():
    chosen = concept()
    record = sep_record_of("lr")

    def row(text, values):
        tokens = [["a", part, value] for part, of_part in values.items() for value in of_part]
        told = {"layer": 1, "accuracy": {}, "tokens": tokens, "text": text}
        return chosen.score(record, {"answer": json.dumps(told)})

    first = row("the root", {"probe": [1.0, -1.0, 0.0, 2.0], "data": [-1.0], "instruction": [3.0]})
    second = row("nothing", {"probe": [-1.0], "data": [-1.0, 1.0], "instruction": [3.0]})
    assert (first["probe_active"], first["data_active"], first["instruction_active"]) == (0.5, 0.0, 1.0)
    assert (first["executed"], second["executed"]) == (True, False)
    groups = chosen.breakdowns([first, second])["executed"]
    assert groups["executed"]["probe_active"]["value"] == 0.5
    assert groups["not executed"]["probe_active"]["value"] == 0.0
    told = chosen.reported([first, second])
    assert told["probe_active_pooled"] == pytest.approx(2 / 5)
    assert told["executed"] == 0.5
    unknown = row(None, {"probe": [], "data": [1.0], "instruction": [1.0]})
    assert unknown["probe_active"] is None
    assert chosen.breakdowns([unknown]) == {}


def test_a_layer_that_the_model_does_not_have_is_an_error(tmp_path, conversations):
    with pytest.raises(ConfigurationError, match="3 is no row of a model with 2 blocks"):
        concept(layers=[3])._probe(examinee(tmp_path, inputs={"texts": conversations}))


# --- rotation, attention, embeddings


def test_the_cosine_is_with_the_reference_at_the_last_token(tmp_path):
    turned, other = tiny_aside(), vanilla()
    for model in (turned, other):  # a final norm that changes directions
        model.model.norm.weight.data = torch.linspace(0.1, 3.0, 32)
    chosen = benchmark_of("rotation", {"records": 4})
    inputs = {"reference": saved(tmp_path / "vanilla", other)}
    _, rows = run(chosen, tmp_path, sep_file(tmp_path), turned, inputs=inputs)
    record = next(r for r in chosen.load(sep_file(tmp_path)) if r.id == rows[0]["id"])
    prompt, _ = sep.prompt_and_probe(record, examinee(tmp_path).builder)
    hidden = []
    for model in (turned, other):
        with torch.inference_mode():
            hidden.append(model.model(input_ids=torch.tensor([prompt.ids]), output_hidden_states=True).hidden_states)
    expected = [float(torch.cosine_similarity(a[0, -1], b[0, -1], dim=0)) for a, b in zip(*hidden, strict=True)]
    assert [rows[0][f"cosine_{row}"] for row in range(3)] == pytest.approx(expected, abs=1e-4)
    assert rows[0]["cosine_0"] == pytest.approx(0.0, abs=1e-5), "the same embedding, turned by a quarter"
    assert rows[0]["cosine_last"] == rows[0]["cosine_2"]
    assert rows[0]["cosine_mean"] == pytest.approx(sum(expected) / 3, abs=1e-4)
    _, same = run(chosen, tmp_path, sep_file(tmp_path), other, inputs=inputs)
    assert all(row["cosine_mean"] == pytest.approx(1.0, abs=1e-5) for row in same)
    assert set(chosen.aggregate(rows)) == {"cosine_mean", "cosine_last", "cosine_0", "cosine_1", "cosine_2"}


def test_attention_is_shared_among_the_parts(tmp_path):
    chosen = benchmark_of("attention", {"records": 4})
    _, rows = run(chosen, tmp_path, sep_file(tmp_path))
    for row in rows:
        for layer in (1, 2):
            assert sum(
                row[f"{part}_{layer}"] for part in ("probe", "data", "instruction", "template")
            ) == pytest.approx(1)
        assert row["probe_mean"] == pytest.approx((row["probe_1"] + row["probe_2"]) / 2)
        assert row["probe_mean"] > 0
    assert {"probe_mean", "probe_1", "template_2"} < set(chosen.aggregate(rows))


def test_embeddings_are_compared_over_the_words_of_a_record(tmp_path):
    chosen = benchmark_of("embedding_metrics", {"records": 3})
    inputs = {"reference": saved(tmp_path / "base", vanilla())}
    _, rows = run(chosen, tmp_path, sep_file(tmp_path), inputs=inputs)
    record = next(r for r in chosen.load(sep_file(tmp_path)) if r.id == rows[0]["id"])
    prompt, _ = sep.prompt_and_probe(record, examinee(tmp_path).builder)
    words = sorted({prompt.ids[place] % V for span in prompt.spans for place in range(span.start, span.end)})
    norms = tiny_aside().get_input_embeddings().weight.detach()[words].norm(dim=1)
    assert rows[0]["role_l2"] == pytest.approx(float((2**0.5 * norms).mean()), rel=1e-4)
    assert rows[0]["role_cosine"] == pytest.approx(0.0, abs=1e-6)
    assert rows[0]["instruction_moved_l2"] == 0.0
    assert rows[0]["data_moved_cosine"] == pytest.approx(0.0, abs=1e-6)
    assert set(chosen.reported(rows)["vocabulary"]["role_l2"]) == {
        "mean", "std", "min", "max", "p5", "p10", "p50", "p90", "p95",
    }  # fmt: skip
    assert rows[1]["vocabulary"] is None


def test_turns_keep_their_order():
    swapped = Conversation(
        id="x", turns=(Turn(role="data", text="d"), Turn(role="instruction", text="i"), Turn(role="response", text="r"))
    )
    assert [turn.role for turn in separability._asked(swapped).turns] == ["instruction", "data"]
