"""Generation: the same answers whatever the batches, and none lost or made twice."""

from __future__ import annotations

import json
import logging
import os
import signal
from itertools import pairwise

import pytest
import torch
from interrupt_samples import caught
from tiny_tokenizers import SENTENCES, tiny_tokenizer
from transformers import (
    AutoModelForCausalLM,
    DynamicCache,
    GenerationConfig,
    GPTNeoXConfig,
    Lfm2Config,
    LlamaConfig,
    Qwen3Config,
    Qwen3NextConfig,
)

from bulwark.data.records import Turn
from bulwark.errors import BulwarkError
from bulwark.interrupts import Interrupted
from bulwark.models import generation
from bulwark.models.batching import CPU_TOKEN_BUDGET, cache_token_budget
from bulwark.models.decoding import Decoding
from bulwark.models.embeddings import install
from bulwark.models.generation import generate
from bulwark.prompts.builder import Prompt, PromptBuilder

SIZE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
GREEDY = Decoding(max_new_tokens=12)
SAMPLED = Decoding(max_new_tokens=12, do_sample=True, temperature=0.9, top_p=0.8)


def tiny_model(config_class=LlamaConfig):
    torch.manual_seed(0)
    heads = {} if config_class is GPTNeoXConfig else {"num_key_value_heads": 2, "head_dim": 8}
    config = config_class(vocab_size=500, max_position_embeddings=512, initializer_range=0.3, **SIZE, **heads)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    install(model, {"method": "aside"})
    return model.eval()


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def builder():
    return PromptBuilder(tiny_tokenizer("chatml"), "chat", 500)


@pytest.fixture(scope="module")
def prompts(builder) -> list[tuple[str, Prompt]]:
    words = SENTENCES[3].split()
    turns = [
        (
            Turn(role="instruction", text="Name " + words[i]),
            Turn(role="data", text=" ".join(words[: 1 + (i * 5) % 13])),
        )
        for i in range(13)
    ]
    return [(f"r{i}", builder.prompt(pair)) for i, pair in enumerate(turns)]


@pytest.fixture
def answer(model, builder, prompts):
    def call(decoding=GREEDY, model=model, prompts=prompts, **options):
        options = {"stop_ids": builder.stop_ids, "pad_id": builder.pad_id, **options}
        return generate(model, prompts, decoding, tokenizer=builder.tokenizer, **options)

    return call


class Counted:
    """Notes the size of every prefill and the rows of every pass; runs out of memory above `most` rows."""

    def __init__(self, model, most=10**6, error=None):
        self._model, self.most, self.rows, self.widths, self.passes = model, most, [], [], []
        self._error = error or torch.OutOfMemoryError("CUDA out of memory.")

    def __getattr__(self, name):
        return getattr(self._model, name)

    def __call__(self, input_ids, **options):
        self.passes.append(len(input_ids))
        if input_ids.shape[1] > 1:
            self.rows.append(len(input_ids))
            self.widths.append(input_ids.shape[1])
        if len(input_ids) > self.most:
            raise self._error
        return self._model(input_ids=input_ids, **options)


@pytest.mark.parametrize("decoding", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("config_class", [LlamaConfig, Qwen3Config, GPTNeoXConfig])
def test_the_same_answers_whatever_the_batches(answer, prompts, config_class, decoding):
    model = tiny_model(config_class)
    alone = answer(decoding, model=model, token_budget=1)
    assert [one.id for one in alone] == [key for key, _ in prompts]
    assert answer(decoding, model=model, token_budget=150) == alone
    assert answer(decoding, model=model, token_budget=10**6) == alone
    assert answer(decoding, model=model, prompts=prompts[::-1]) == alone[::-1]
    assert len({one.response for one in alone}) > 1


def test_greedy_is_what_plain_decoding_without_cache_and_padding_gives(answer, model, prompts, builder):
    key, prompt = prompts[0]
    ids = torch.tensor([prompt.ids])
    for _ in range(GREEDY.max_new_tokens):
        with torch.no_grad():
            ids = torch.cat([ids, model(input_ids=ids).logits[:, -1:].argmax(-1)], dim=1)
        if ids[0, -1] in builder.stop_ids:
            break
    new = ids[0, len(prompt.ids) :].tolist()
    found = answer()[0]
    assert found.id == key
    assert found.tokens == len(new)
    assert found.response == builder.tokenizer.decode(new, skip_special_tokens=True).strip()


def test_sampling_follows_seed_and_temperature(answer):
    first = answer(SAMPLED, seed=1)
    assert answer(SAMPLED, seed=1) == first
    assert answer(SAMPLED, seed=2) != first
    cold = SAMPLED.model_copy(update={"temperature": 1e-4})
    assert [one.response for one in answer(cold)] == [one.response for one in answer(GREEDY)]
    narrow = SAMPLED.model_copy(update={"top_p": 1e-6})
    assert [one.response for one in answer(narrow)] == [one.response for one in answer(GREEDY)]


def test_sampled_frequencies_are_the_models_probabilities(answer, model, prompts):
    prompt = prompts[0][1]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt.ids])).logits[0, -1] / 0.9
    probabilities = logits.softmax(-1)
    ordered, tokens = probabilities.sort(descending=True)
    nucleus = tokens[: int((ordered.cumsum(-1) < 0.8).sum()) + 1]
    expected = probabilities[nucleus] / probabilities[nucleus].sum()
    one_token = SAMPLED.model_copy(update={"max_new_tokens": 1})
    thousands = [(str(i), prompt) for i in range(1500)]

    class Ids:
        def batch_decode(self, rows, **options):
            return [str(row[0]) for row in rows]

    found = generate(model, thousands, one_token, tokenizer=Ids(), stop_ids=[], pad_id=0, token_budget=10**6)
    drawn = [int(one.response) for one in found]
    assert set(drawn) <= set(nucleus.tolist())
    found = torch.tensor([drawn.count(token) for token in nucleus.tolist()]) / len(drawn)
    assert (found - expected).abs().max() < 0.05


def test_generated_tokens_count_up_to_the_stop_token(answer, builder, model):
    everything = range(500)
    stopped = answer(stop_ids=list(everything))
    assert {(one.tokens, one.finish, one.response) for one in stopped} == {(1, "stop", "")}
    running = answer(stop_ids=[499])
    assert {one.finish for one in running} <= {"length", "stop"}
    assert {one.tokens for one in running if one.finish == "length"} == {12}


def test_longest_first_and_within_the_budget(answer, model, prompts):
    counted = Counted(model)
    answer(model=counted, token_budget=150)
    assert counted.widths == sorted(counted.widths, reverse=True)
    assert counted.widths[0] == max(len(prompt.ids) for _, prompt in prompts)
    assert all(rows * (width + 12) <= 150 for rows, width in zip(counted.rows, counted.widths, strict=True) if rows > 1)
    assert sum(counted.rows) == len(prompts)
    assert len(counted.rows) < len(prompts)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes"),
    ],
)
def test_out_of_memory_halves_the_budget_and_tries_the_same_records(answer, model, error, tmp_path, caplog):
    counted = Counted(model, most=3, error=error)
    with caplog.at_level(logging.WARNING, logger="bulwark"):
        found = answer(model=counted, partial=tmp_path / "a.partial")
    assert found == answer()
    assert counted.rows[:3] == [13, 6, 3]
    assert max(counted.rows[2:]) <= 4
    assert "Out of memory with 13 rows" in caplog.text
    assert len((tmp_path / "a.partial").read_text().splitlines()) == 14


def test_out_of_memory_with_one_record_and_other_errors(answer, model):
    with pytest.raises(BulwarkError, match="Out of memory with a single prompt"):
        answer(model=Counted(model, most=0))
    with pytest.raises(RuntimeError, match="another fault"):
        answer(model=Counted(model, most=0, error=RuntimeError("another fault")))


def test_an_interrupted_run_continues_where_it_stopped(answer, model, tmp_path):
    partial = tmp_path / "answers.jsonl.partial"
    whole = answer()

    class Killed(Counted):
        def __call__(self, input_ids, **options):
            if len(self.rows) == 3 and input_ids.shape[1] > 1:
                raise KeyboardInterrupt
            return super().__call__(input_ids, **options)

    killed = Killed(model)
    with pytest.raises(KeyboardInterrupt):
        answer(model=killed, token_budget=150, partial=partial, fingerprint="x")
    done = sum(killed.rows)
    assert len(partial.read_text().splitlines()) == 1 + done
    with partial.open("ab") as file:
        file.write(b'{"id": "r4", "resp')  # cut off in the middle of a line
    again = Counted(model)
    assert answer(model=again, partial=partial, fingerprint="x") == whole
    assert sum(again.rows) == len(whole) - done
    finished = Counted(model)
    assert answer(model=finished, partial=partial, fingerprint="x") == whole
    assert finished.rows == []
    rows = [json.loads(line) for line in partial.read_text().splitlines()]
    assert sorted(row["id"] for row in rows[1:]) == sorted(one.id for one in whole)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_told_to_end_it_finishes_the_batch_and_says_what_is_kept(answer, model, tmp_path, number, caplog):
    partial = tmp_path / "answers.jsonl.partial"
    whole = answer()

    class Told(Counted):
        def __call__(self, input_ids, **options):
            if len(self.rows) == 2 and input_ids.shape[1] > 1:
                os.kill(os.getpid(), number)
            return super().__call__(input_ids, **options)

    told = Told(model)
    with caught(), pytest.raises(Interrupted) as ended:
        answer(model=told, token_budget=150, partial=partial, fingerprint="x")
    done = sum(told.rows)
    assert ended.value.code == 128 + number
    assert len(told.rows) == 3  # the batch was finished
    assert f"{done} of {len(whole)} answers are kept in {partial}; give the same command again" in caplog.messages
    again = Counted(model)
    assert answer(model=again, partial=partial, fingerprint="x") == whole
    assert sum(again.rows) == len(whole) - done


@pytest.mark.parametrize("line", [0, 1, 7, 13])
def test_from_a_damaged_line_on_answers_are_generated_again(answer, tmp_path, line, caplog):
    """Even where it is a whole answer still."""
    partial = tmp_path / "a.partial"
    whole = answer(partial=partial, fingerprint="x")
    lines = partial.read_text().splitlines(keepends=True)
    at = lines[line].index('"response":"' if line else '"fingerprint":"') + 17
    lines[line] = lines[line][:at] + ("b" if lines[line][at] != "b" else "c") + lines[line][at + 1 :]
    partial.write_text("".join(lines))
    with caplog.at_level(logging.WARNING, logger="bulwark"):
        assert answer(partial=partial, fingerprint="x") == whole
    assert f"{partial}, line {line + 1}: damaged" in caplog.text
    assert len(partial.read_text().splitlines()) == 14


@pytest.mark.parametrize(
    "other",
    [{"fingerprint": "y"}, {"seed": 3}, {"stop_ids": [5]}, {"decoding": Decoding(max_new_tokens=3)}],
    ids=lambda other: next(iter(other)),
)
def test_answers_made_under_other_settings_are_discarded(answer, model, tmp_path, other, caplog):
    partial = tmp_path / "a.partial"
    answer(partial=partial, fingerprint="x")
    counted = Counted(model)
    with caplog.at_level(logging.WARNING, logger="bulwark"):
        answer(model=counted, partial=partial, **{"fingerprint": "x", **other})
    assert sum(counted.rows) == 13
    assert "discarded" in caplog.text
    assert len(partial.read_text().splitlines()) == 14


def test_a_changed_prompt_is_answered_anew(answer, model, prompts, tmp_path):
    partial = tmp_path / "a.partial"
    answer(partial=partial)
    changed = [(prompts[0][0], prompts[1][1]), *prompts[1:]]
    counted = Counted(model)
    found = answer(model=counted, prompts=changed, partial=partial)
    assert counted.rows == [1]
    assert found[0].response == answer(prompts=changed)[0].response


def test_the_models_own_generation_options_are_not_used_and_kept(answer, model):
    expected = answer()
    own = GenerationConfig(repetition_penalty=5.0, do_sample=True, top_k=3, max_new_tokens=2)
    before, model.generation_config = model.generation_config, own
    model.train()
    assert answer() == expected
    assert model.generation_config is own
    assert model.training
    model.eval()
    model.generation_config = before


def test_bad_input_is_named(answer, prompts):
    with pytest.raises(BulwarkError, match='Two prompts have the key "r0"'):
        answer(prompts=[*prompts, prompts[0]])
    with pytest.raises(BulwarkError, match="above max_prompt_tokens = 5"):
        answer(GREEDY.model_copy(update={"max_prompt_tokens": 5}))


def test_logits_that_are_no_numbers_are_an_error(answer):
    broken = tiny_model()
    with torch.no_grad():
        broken.lm_head.weight[3] = torch.nan
    with pytest.raises(BulwarkError, match="not numbers"):
        answer(model=broken)


def test_no_prompts_no_answers(answer, tmp_path):
    assert answer(prompts=[], partial=tmp_path / "a.partial") == []


def test_the_default_budget_on_a_cpu(model):
    assert cache_token_budget(model) == CPU_TOKEN_BUDGET


# Finished rows leave their batch


def often(model, prompts) -> dict:
    """Stop tokens that end answers at different steps: a token of every other answer."""
    written = []

    class Ids:
        def batch_decode(self, rows, **options):
            written.extend(rows)
            return ["" for _ in rows]

    generate(model, prompts, GREEDY, tokenizer=Ids(), stop_ids=[499], pad_id=0)
    return {"stop_ids": sorted({row[5 + 2 * n % 7] for n, row in enumerate(written[::2])})}


def hybrid(name: str):
    """A tiny model with linear attention ("qwen3_next") or convolutions ("lfm2") in some of its blocks."""
    torch.manual_seed(0)
    if name == "qwen3_next":
        config = Qwen3NextConfig(
            vocab_size=500, num_key_value_heads=2, head_dim=8, linear_num_key_heads=2, linear_num_value_heads=2,
            linear_key_head_dim=8, linear_value_head_dim=8, num_experts=2, num_experts_per_tok=1,
            moe_intermediate_size=16, shared_expert_intermediate_size=16, initializer_range=0.3,
            layer_types=["linear_attention", "full_attention"], **SIZE,
        )  # fmt: skip
    else:
        config = Lfm2Config(
            vocab_size=500, num_key_value_heads=2, layer_types=["conv", "full_attention"], initializer_range=0.3,
            block_auto_adjust_ff_dim=False, **SIZE,
        )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    install(model, {"method": "vanilla"})
    return model.eval()


@pytest.mark.parametrize("decoding", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_finished_rows_leave_and_nothing_changes(answer, model, prompts, decoding, monkeypatch):
    stops = often(model, prompts)
    counted, seen = Counted(model), []
    found = answer(decoding, model=counted, on_rows=seen.append, **stops)
    assert len({one.tokens for one in found}) > 2
    assert counted.passes == sorted(counted.passes, reverse=True)
    assert counted.passes[-1] < counted.passes[0] == len(prompts)
    assert [len(numbers) for numbers in seen] == sorted(set(counted.passes), reverse=True)
    assert seen[0] == sorted(range(len(prompts)), key=lambda number: -len(prompts[number][1].ids))
    assert all(set(later) < set(earlier) for earlier, later in pairwise(seen))
    monkeypatch.setattr(generation, "COMPACT_AT", -1)
    staying = Counted(model)
    assert answer(decoding, model=staying, **stops) == found
    assert set(staying.passes) == {len(prompts)}
    assert answer(decoding, token_budget=1, **stops) == found


@pytest.mark.parametrize("name", ["qwen3_next", "lfm2"])
def test_rows_leave_hybrids_too(answer, prompts, name):
    model = hybrid(name)
    stops = often(model, prompts)
    alone = answer(model=model, token_budget=1, **stops)
    counted = Counted(model)
    assert answer(model=counted, **stops) == alone
    assert counted.passes[-1] < counted.passes[0] == len(prompts)
    assert len({one.tokens for one in alone}) > 2


def test_rows_stay_where_the_cache_cannot_drop_them(answer, model, prompts):
    class OwnCache(DynamicCache):
        def reorder_cache(self, rows):
            raise NotImplementedError

    class WithOwnCache(Counted):
        def __call__(self, input_ids, past_key_values=None, **options):
            past_key_values = OwnCache() if past_key_values is None else past_key_values
            return super().__call__(input_ids, past_key_values=past_key_values, **options)

    stops = often(model, prompts)
    counted = WithOwnCache(model)
    assert answer(model=counted, **stops) == answer(**stops)
    assert set(counted.passes) == {len(prompts)}


def test_stopping_early_leaves_the_beginning_of_the_whole_answer(answer, prompts):
    whole = answer(stop_ids=[499])
    asked = []

    def stop_when(text):
        asked.append(text)
        return len(text) % 2 == 0

    early = answer(stop_ids=[499], stop_when=stop_when)
    assert asked
    assert {one.finish for one in early} == {"decided", "length"}
    for one, other in zip(early, whole, strict=True):
        assert other.response.startswith(one.response)
        assert one.tokens in (generation.LOOK_EVERY, 2 * generation.LOOK_EVERY, 12)


def test_rows_that_all_end_in_the_step_of_a_look_are_not_looked_at(answer, model, prompts):
    """A decoder makes one text of no rows at all, which would be a verdict too many."""
    key, prompt = prompts[0]
    (whole,) = generation.decode(model, [prompt], max_new_tokens=generation.LOOK_EVERY, stop_ids=[], pad_id=0)
    last = whole.ids[-1]
    assert last not in whole.ids[:-1]
    (ended,) = answer(prompts=[(key, prompt)], stop_ids=[last], stop_when=lambda text: pytest.fail("looked at"))
    assert (ended.finish, ended.tokens) == ("stop", generation.LOOK_EVERY)
