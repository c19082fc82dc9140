"""Generation: the same answers whatever the batches, by greedy decoding and by sampling."""

from __future__ import annotations

import functools
import logging
from itertools import pairwise

import pytest
import torch
from generation_samples import GREEDY, SAMPLED, SIZE, Counted, answers, sample_builder, sample_model, sample_prompts
from transformers import (
    AutoModelForCausalLM,
    DynamicCache,
    GenerationConfig,
    GPTNeoXConfig,
    Lfm2Config,
    LlamaConfig,
    Qwen3Config,
    Qwen3NextConfig,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from bulwark.errors import BulwarkError, ConfigurationError
from bulwark.models import generation
from bulwark.models.batching import CPU_TOKEN_BUDGET, cache_token_budget
from bulwark.models.decoding import Decoding
from bulwark.models.embeddings import install
from bulwark.models.generation import Sampler, generate
from bulwark.prompts.builder import Prompt
from bulwark.settings import validated


@pytest.fixture(scope="module")
def model():
    return sample_model()


@pytest.fixture(scope="module")
def builder():
    return sample_builder()


@pytest.fixture(scope="module")
def prompts(builder) -> list[tuple[str, Prompt]]:
    return sample_prompts(builder)


@pytest.fixture
def answer(model, builder, prompts):
    return functools.partial(answers, model=model, builder=builder, prompts=prompts)


@pytest.mark.parametrize("decoding", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("config_class", [LlamaConfig, Qwen3Config, GPTNeoXConfig])
def test_the_same_answers_whatever_the_batches(answer, prompts, config_class, decoding):
    model = sample_model(config_class)
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


@pytest.mark.parametrize(("top_k", "top_p"), [(1, 1.0), (5, 1.0), (50, 1.0), (5, 0.7), (50, 0.5), (10**6, 0.9)])
def test_the_likeliest_tokens_are_those_that_transformers_leaves(top_k, top_p):
    """Against transformers' own cuts, by the same uniform numbers; with ties at the border, all of which stay."""
    torch.manual_seed(0)
    logits = torch.randn(400, 80) * 2
    if top_p == 1.0:  # of the ties at the border of a nucleus transformers takes others
        logits = logits.round(decimals=1)
    keys = [str(number) for number in range(len(logits))]
    decoding = Decoding(max_new_tokens=1, do_sample=True, temperature=0.7, top_k=top_k, top_p=top_p)
    drawn = Sampler(decoding, keys, seed=3, device=torch.device("cpu"))(logits, 0, torch.arange(len(keys)))

    left = TopKLogitsWarper(top_k)(None, TemperatureLogitsWarper(0.7)(None, logits.clone()))
    if top_p < 1:
        left = TopPLogitsWarper(top_p)(None, left)
    shares = left.double().softmax(-1)
    if (top_k, top_p) == (5, 1.0):
        assert int((shares > 0).sum(-1).max()) > 5  # there are ties
    for row, key in enumerate(keys):
        assert shares[row, drawn[row]] > 0
        number = float(Sampler._numbers(3, key, 1)[0])
        expected = next(token for token in range(80) if float(shares[row, : token + 1].sum()) > number)
        assert int(drawn[row]) == expected


def test_without_a_number_of_likeliest_tokens_all_are_drawn_from_and_nothing_is_written_of_it(answer, builder):
    assert Decoding().top_k is None
    assert "top_k" not in SAMPLED.model_dump()  # settings and fingerprints of results without it stay as they were
    assert SAMPLED.model_copy(update={"top_k": 50}).model_dump()["top_k"] == 50
    all_of_them = SAMPLED.model_copy(update={"top_k": builder.vocabulary})
    assert [one.response for one in answer(all_of_them)] == [one.response for one in answer(SAMPLED)]
    one = SAMPLED.model_copy(update={"top_k": 1})
    assert [one.response for one in answer(one)] == [one.response for one in answer(GREEDY)]


@pytest.mark.parametrize("top_k", [0, -1, 2.5, "50", True])
def test_a_number_of_likeliest_tokens_that_means_nothing_is_refused(top_k):
    with pytest.raises(ConfigurationError, match="top_k"):
        validated(Decoding, {"do_sample": True, "top_k": top_k}, "x.yaml")


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
    broken = sample_model()
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
