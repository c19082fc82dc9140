"""Which examples a step has, how they are dealt to ranks and micro-batches, and how they lie in tensors."""

from __future__ import annotations

import pytest
import torch
from training_samples import PAD, example, examples, settings

from bulwark.errors import BulwarkError, ConfigurationError
from bulwark.prompts.builder import IGNORED
from bulwark.training.batches import StepBatches, evaluation_batches, training_batches

PLACE = {"pad_id": PAD, "rank": 0, "ranks": 1, "flatten": False}


def batches(count: int = 22, **changes) -> StepBatches:
    defaults = {"batch_size": 4, "micro_batch_size": 2, "pad_id": PAD}
    return StepBatches(examples(count), **(defaults | changes))


def members(steps: StepBatches, step: int) -> list[int]:
    return sorted(example for batch in steps.of_step(step) for row in batch.rows for example in row)


def test_an_epoch_has_every_example_once_and_its_last_step_the_rest():
    steps = batches(22)
    epoch = [members(steps, step) for step in range(steps.steps_per_epoch)]
    assert [len(step) for step in epoch] == [4, 4, 4, 4, 4, 2]
    assert sorted(number for step in epoch for number in step) == list(range(22))


def test_epochs_differ_and_are_a_function_of_seed_and_step():
    order = [members(batches(), step) for step in range(12)]
    assert order == [members(batches(), step) for step in range(12)]
    assert order[:6] != order[6:]
    assert order != [members(batches(seed=1), step) for step in range(12)]


def test_a_step_has_the_same_examples_however_it_is_carried_out():
    plain = [members(batches(), step) for step in range(6)]
    for changes in ({"micro_batch_size": 4}, {"micro_batch_size": 1}, {"packed_length": 20}):
        assert [members(batches(**changes), step) for step in range(6)] == plain
    by_rank = [batches(rank=rank, ranks=2, micro_batch_size=1) for rank in (0, 1)]
    assert [sorted(members(by_rank[0], step) + members(by_rank[1], step)) for step in range(6)] == plain


def test_ranks_get_equally_many_micro_batches_even_when_examples_run_out():
    for step in range(6):
        micro = [list(batches(21, rank=rank, ranks=4, micro_batch_size=1).of_step(step)) for rank in range(4)]
        assert len({len(part) for part in micro}) == 1
    last = micro[3][0]
    assert last.rows == ((),)
    assert last.targets.numel() == 0
    assert last.input_ids.shape == (1, 1)


def test_tensors_hold_ids_mask_labels_padded_on_the_right():
    steps = StepBatches(
        [example([5, 6, 7], 1), example([8, 9, 10, 11], 2)], batch_size=2, micro_batch_size=2, pad_id=PAD
    )
    [batch] = steps.of_step(0)
    assert batch.rows == ((1,), (0,))
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]
    assert batch.labels.tolist() == [[-100, -100, 10, 11], [-100, -100, 7, -100]]
    assert batch.input_ids[1, 3] == PAD
    assert batch.targets.tolist() == [10, 11, 7]
    assert batch.target_positions.tolist() == [1, 2, 5]
    assert (batch.step_tokens, batch.step_sequences, batch.step_positions) == (3, 2, 7)
    assert batch.positions.tolist() == [0, 1, 2, 3, 4, 5, 6]


def test_step_tokens_count_the_whole_step_on_every_rank():
    whole = next(batches(micro_batch_size=4).of_step(1))
    for rank in (0, 1):
        for batch in batches(rank=rank, ranks=2, micro_batch_size=1).of_step(1):
            assert batch.step_tokens == whole.step_tokens == whole.targets.numel()
            assert batch.step_positions == whole.positions.numel()


def test_the_first_token_is_not_learned_since_nothing_predicts_it():
    everything = [example([5, 6, 7], 3), example([8, 9], 2)]
    [batch] = StepBatches(everything, batch_size=2, micro_batch_size=2, pad_id=PAD, packed_length=5).of_step(0)
    assert batch.labels.tolist() == [[IGNORED, 6, 7, IGNORED, 9]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 0, 1]]


def test_packing_fills_rows_up_to_their_length():
    steps = batches(32, batch_size=32, micro_batch_size=32, packed_length=24)
    [batch] = steps.of_step(0)
    assert 0.85 < batch.attention_mask.float().mean() <= 1
    assert batch.input_ids.shape[1] <= 24
    assert len(batch.rows) < 16


def test_flattened_rows_keep_their_order_and_positions():
    [rows] = batches(8, batch_size=8, micro_batch_size=8, packed_length=24).of_step(0)
    [flat] = batches(8, batch_size=8, micro_batch_size=8, packed_length=24, flatten=True).of_step(0)
    kept = rows.attention_mask.bool()
    assert flat.input_ids.tolist() == [rows.input_ids[kept].tolist()]
    assert flat.position_ids.tolist() == [rows.position_ids[kept].tolist()]


def test_grouping_by_length_saves_padding():
    def padding(grouped: bool) -> float:
        steps = StepBatches(
            examples(256, longest=60), batch_size=8, micro_batch_size=8, pad_id=PAD, group_by_length=grouped
        )
        masks = [batch.attention_mask for step in range(32) for batch in steps.of_step(step)]
        return 1 - sum(mask.sum().item() for mask in masks) / sum(mask.numel() for mask in masks)

    assert padding(True) < 0.12 < 0.3 < padding(False)


def test_evaluation_is_one_step_with_everything():
    judged = evaluation_batches(examples(9), settings(), **PLACE)
    found = list(judged.of_step(0))
    assert sorted(number for batch in found for row in batch.rows for number in row) == list(range(9))
    assert all(batch.step_tokens == sum(part.targets.numel() for part in found) for batch in found)


def test_moving_a_batch_keeps_what_is_no_tensor():
    [batch] = batches(4, micro_batch_size=4).of_step(0)
    moved = batch.to(torch.device("meta"))
    assert moved.input_ids.device.type == "meta"
    assert (moved.rows, moved.step_tokens) == (batch.rows, batch.step_tokens)


@pytest.mark.parametrize(("ranks", "micro_batch", "multiple"), [(2, 4, 8), (3, 2, 6)])
def test_a_batch_that_does_not_divide_is_told(ranks, micro_batch, multiple):
    with pytest.raises(ConfigurationError, match=f"batch_size 4 cannot be divided .* multiple of {multiple}"):
        training_batches(
            examples(8), settings(micro_batch_size=micro_batch), seed=0, pad_id=PAD, rank=0, ranks=ranks, flatten=False
        )


def test_unusable_data_is_told():
    with pytest.raises(BulwarkError, match="the data set is empty"):
        batches(0)
    with pytest.raises(BulwarkError, match="No example has a token to learn"):
        StepBatches([example([5, 6], 0)], batch_size=1, micro_batch_size=1, pad_id=PAD)


def test_a_step_without_anything_to_learn_is_a_batch_like_any_other():
    steps = StepBatches([example([5, 6, 7], 0), example([5, 6], 1)], batch_size=1, micro_batch_size=1, pad_id=PAD)
    tokens = sorted(next(steps.of_step(step)).step_tokens for step in (0, 1))
    assert tokens == [0, 1]
