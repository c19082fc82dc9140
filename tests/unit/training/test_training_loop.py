"""The loop against a plain one in torch, what it reports, and where it stops."""

from __future__ import annotations

import copy
import json
import logging
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tiny_causal_models import tiny_model
from torch import Tensor, nn
from training_samples import PAD, Edited, Trajectory, examples, settings, trained
from transformers import get_scheduler

from bulwark.errors import BulwarkError
from bulwark.models.embeddings import install
from bulwark.training.batches import training_batches
from bulwark.training.objectives import Objective, next_token_loss
from bulwark.training.settings import TrainingSettings


def model_of(method: str = "vanilla", dtype: torch.dtype = torch.float32) -> nn.Module:
    model = tiny_model("llama", dtype=dtype)
    install(model, {"method": method})
    return model


def plainly(model: nn.Module, chosen: TrainingSettings, count: int = 14) -> tuple[list[float], nn.Module]:
    """The losses and the model of a loop as anyone would write it: one batch per step, AdamW, clipping, a schedule."""
    groups = [
        {"params": [weight for weight in model.parameters() if weight.dim() > 1], "weight_decay": chosen.weight_decay},
        {"params": [weight for weight in model.parameters() if weight.dim() == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=chosen.learning_rate)
    total = chosen.total_steps(count)
    schedule = get_scheduler(chosen.schedule, optimizer, chosen.warmup(total), total)
    whole = chosen.model_copy(update={"micro_batch_size": chosen.batch_size, "packing": False})
    steps = training_batches(examples(count), whole, seed=0, pad_id=PAD, rank=0, ranks=1, flatten=False)
    losses = []
    model.train()
    for step in range(total):
        [batch] = steps.of_step(step)
        logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False).logits
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), batch.labels[:, 1:].flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), chosen.max_grad_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses, model


def close(one: nn.Module, other: nn.Module, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(dict(one.state_dict()), dict(other.state_dict()), atol=tolerance, rtol=0)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"micro_batch_size": 1},
        {"packing": True, "max_tokens": 30},
        {"gradient_checkpointing": True},
        {"schedule": "linear", "warmup_ratio": 0.5},
        {"weight_decay": 0.5},
        {"weight_decay": 0.5, "zero_stage": 3},
        {"zero_stage": 1},
        {"zero_stage": 2, "micro_batch_size": 1},
        {"zero_stage": 3, "micro_batch_size": 1},
        {"zero_stage": 3, "gradient_checkpointing": True},
        {"zero_stage": 2, "offload": True},
        {"epochs": 1.5, "max_steps": None},
    ],
    ids=str,
)
def test_it_does_what_a_plain_loop_does(changes, tmp_path):
    losses, expected = plainly(model_of(), settings(**changes))
    result = trained(model_of(), tmp_path, **changes)
    assert [loss for _, loss in result.report.loss] == pytest.approx(losses, abs=1e-5)
    close(result.model, expected)


def test_the_returned_model_is_an_ordinary_one(tmp_path):
    for stage in (0, 2, 3):
        model = trained(model_of(), tmp_path / str(stage), zero_stage=stage, gradient_checkpointing=True).model
        assert not model.training
        assert not model._forward_hooks
        assert not model._forward_pre_hooks
        [batch] = training_batches(
            examples(4), settings(micro_batch_size=4), seed=0, pad_id=PAD, rank=0, ranks=1, flatten=False
        ).of_step(0)
        output = copy.deepcopy(model)(**batch.inputs()).logits
        assert not output.isnan().any()
        model.save_pretrained(tmp_path / str(stage) / "saved")
        assert not any(hasattr(parameter, "ds_id") for parameter in model.parameters())


def test_tied_weights_stay_tied(tmp_path):
    for stage in (0, 3):
        model = tiny_model("llama", tied=True)
        install(model, {"method": "aside"})
        model = trained(model, tmp_path / str(stage), zero_stage=stage).model
        assert model.get_input_embeddings().weight is model.get_output_embeddings().weight


def test_bfloat16_keeps_float32_masters(tmp_path):
    """Steps of 3e-5 are below bfloat16's resolution at these weights; thirty of them must not be lost."""
    before = model_of(dtype=torch.bfloat16)
    for stage in (0, 3):
        model = trained(
            model_of(dtype=torch.bfloat16),
            tmp_path / str(stage),
            precision="bfloat16",
            zero_stage=stage,
            max_steps=30,
            learning_rate=3e-5,
            schedule="constant",
        ).model
        moved = (model.lm_head.weight - before.lm_head.weight).abs()
        assert model.lm_head.weight.dtype == torch.bfloat16
        assert (moved > 0).float().mean() > 0.5


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_schedule_free_adamw_is_judged_and_saved_as_its_average(stage, tmp_path):
    import schedulefree

    chosen = {"optimizer": "schedulefree_adamw", "schedule": "constant", "warmup_steps": 2, "max_grad_norm": 0.0}
    model = model_of()
    optimizer = schedulefree.AdamWScheduleFree(model.parameters(), lr=1e-2, warmup_steps=2)
    steps = training_batches(
        examples(14), settings(micro_batch_size=4), seed=0, pad_id=PAD, rank=0, ranks=1, flatten=False
    )
    optimizer.train()
    for step in range(4):
        [batch] = steps.of_step(step)
        logits = model(**batch.inputs(), use_cache=False).logits
        F.cross_entropy(logits[:, :-1].flatten(0, 1), batch.labels[:, 1:].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
    optimizer.eval()
    result = trained(model_of(), tmp_path, zero_stage=stage, evaluate_every=2, **chosen)
    close(result.model, model)


def test_sgd(tmp_path):
    result = trained(model_of(), tmp_path, optimizer="sgd", max_steps=1, max_grad_norm=0.0, schedule="constant")
    losses = result.report.loss
    assert len(losses) == 1
    changed = [a.ne(b).any() for a, b in zip(result.model.parameters(), model_of().parameters(), strict=True)]
    assert all(changed)


@pytest.mark.parametrize("stage", [0, 3])
def test_adapters_are_trained_alone_and_merged(stage, tmp_path):
    before = model_of("aside")
    result = trained(
        model_of("aside"), tmp_path, zero_stage=stage, lora={"rank": 2, "target_modules": ("q_proj", "down_proj")}
    )
    assert type(result.model) is type(before)
    changed = {
        name for name, weight in result.model.state_dict().items() if not torch.equal(weight, before.state_dict()[name])
    }
    assert changed == {
        f"model.layers.{n}.{part}.weight" for n in (0, 1) for part in ("self_attn.q_proj", "mlp.down_proj")
    }
    assert result.report.trainable_parameters == 2 * (2 * (16 + 16) + 2 * (24 + 16))


def test_adapters_on_modules_that_are_not_there(tmp_path):
    with pytest.raises(BulwarkError, match=r"no c_attn\..* this model has .*q_proj"):
        trained(model_of(), tmp_path, lora={"target_modules": ("c_attn",)})


def test_the_best_weights_are_kept(tmp_path):
    """A learning rate so high that the loss gets worse after the first evaluation."""
    chosen = {"learning_rate": 3.0, "schedule": "constant", "max_steps": 4, "evaluate_every": 1}
    result = trained(model_of(), tmp_path, keep_best=True, **chosen)
    losses = dict(result.report.validation)
    best = min(losses, key=losses.get)
    assert result.report.best_step == result.report.weights_of_step == best
    assert best < 4
    shorter = trained(model_of(), tmp_path / "shorter", **(chosen | {"max_steps": best}))
    close(result.model, shorter.model, 0.0)


def test_the_evaluation_loss_is_a_mean_over_tokens(tmp_path):
    result = trained(model_of(), tmp_path, learning_rate=1e-9)
    [batch] = training_batches(
        examples(6, seed=1),
        settings(batch_size=6, micro_batch_size=6),
        seed=0, pad_id=PAD, rank=0, ranks=1, flatten=False,
    ).of_step(0)  # fmt: skip
    with torch.no_grad():
        logits = model_of()(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    expected = F.cross_entropy(logits[:, :-1].flatten(0, 1), batch.labels[:, 1:].flatten()).item()
    assert result.report.validation == [[4, pytest.approx(expected, abs=1e-5)]]


def test_the_report(tmp_path):
    report = trained(model_of(), tmp_path, epochs=1, max_steps=None).report
    assert (report.steps, report.epochs, report.examples, report.processes) == (4, 1.0, 14, 1)
    assert report.tokens == sum(len(one.ids) for one in examples(14))
    assert report.target_tokens == sum(label >= 0 for one in examples(14) for label in one.labels)
    assert report.tokens_per_second > 0
    assert 0.05 < report.peak_memory_gb < 100
    assert report.parameters == report.trainable_parameters == model_of().num_parameters()
    json.dumps(vars(report))


def test_tensorboard_has_every_step(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    report = trained(model_of(), tmp_path, evaluate_every=2).report
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("loss/train")] == [1, 2, 3, 4]
    assert [event.step for event in events.Scalars("loss/validation")] == [2, 4]
    assert events.Scalars("loss/train")[3].value == pytest.approx(report.loss[3][1])


def test_a_log_file_gets_a_line_with_speed_and_time(tmp_path, caplog):
    with caplog.at_level(logging.INFO, logger="bulwark"):
        trained(model_of(), tmp_path)
    assert any("step 4/4 (100 %)" in line and "tokens/s" in line and "left" in line for line in caplog.messages)


class _Noted(Objective):
    """Notes in which order the loop calls it."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def start(self, engine, total):
        self.calls.append("start")

    def before_step(self, engine, step, total):
        self.calls.append(f"before {step}/{total}")

    def backward(self, engine, batch):
        self.calls.append("backward")
        return super().backward(engine, batch)

    def after_backward(self, engine, step, total):
        self.calls.append(f"gradients {step}")

    def after_step(self, engine, step, total):
        self.calls.append(f"after {step}")

    def validation_loss(self, model, batch):
        self.calls.append("validation")
        return super().validation_loss(model, batch)

    def finish(self, model, step, total):
        self.calls.append(f"finish {step}")


def test_an_objective_is_called_in_order(tmp_path):
    noted = _Noted()
    trained(model_of(), tmp_path, objective=noted, max_steps=2, micro_batch_size=2)
    step = ["before {0}/2", "backward", "backward", "gradients {0}", "after {0}"]
    expected = ["start", *(part.format(n) for n in (0, 1) for part in step), *["validation"] * 3, "finish 2"]
    assert noted.calls == expected


@pytest.mark.parametrize(("stage", "precision"), [(0, "float32"), (2, "float32"), (3, "float32"), (0, "bfloat16")])
def test_gradients_can_be_edited_at_every_stage(stage, precision, tmp_path):
    chosen = {"zero_stage": stage, "precision": precision, "max_grad_norm": 0.0, "micro_batch_size": 2}
    dtype = getattr(torch, precision)
    model = trained(model_of(dtype=dtype), tmp_path, objective=Edited(), **chosen).model
    before = model_of(dtype=dtype).state_dict()
    unchanged = {name for name, weight in model.state_dict().items() if torch.equal(weight, before[name])}
    assert {name for name in before if name.endswith("q_proj.weight")} == unchanged


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_trajectory_inside_a_step(stage, tmp_path):
    chosen = settings(micro_batch_size=4, max_grad_norm=0.0)
    model = model_of()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0)
    schedule = get_scheduler("cosine", optimizer, 0, 4)
    steps = training_batches(examples(14), chosen, seed=0, pad_id=PAD, rank=0, ranks=1, flatten=False)
    for step in range(4):
        [batch] = steps.of_step(step)
        attacked = copy.deepcopy(model)
        for _ in range(2):
            attacked.zero_grad()
            next_token_loss(attacked, batch).backward()
            with torch.no_grad():
                for parameter in attacked.parameters():
                    parameter -= 0.1 * parameter.grad
        attacked.zero_grad()
        next_token_loss(attacked, batch).backward()
        for parameter, other in zip(model.parameters(), attacked.parameters(), strict=True):
            parameter.grad = other.grad
        optimizer.step()
        schedule.step()
    changes = {"zero_stage": stage, "micro_batch_size": 4, "max_grad_norm": 0.0}
    result = trained(model_of(), tmp_path, objective=Trajectory(), **changes)
    close(result.model, model, 1e-4)  # Adam enlarges the rounding of gradients that are nearly nought


class _Diverging(Objective):
    def loss(self, model, batch: object) -> Tensor:
        self.steps = getattr(self, "steps", 0) + 1
        return super().loss(model, batch) * (math.nan if self.steps == 4 else 1.0)


def test_a_loss_that_is_not_finite_stops_and_names_the_last_good_state(tmp_path):
    with pytest.raises(BulwarkError, match=r"step 4 of 6: the loss is nan.*last good state is .*step-000002"):
        trained(model_of(), tmp_path, objective=_Diverging(), max_steps=6, micro_batch_size=4, save_every=2)


def test_without_a_state_it_says_so(tmp_path):
    with pytest.raises(BulwarkError, match=r"No state had been saved"):
        trained(model_of(), tmp_path, objective=_Diverging(), max_steps=6, micro_batch_size=4)


def test_a_frozen_model(tmp_path):
    with pytest.raises(BulwarkError, match="nothing to train"):
        trained(model_of().requires_grad_(False), tmp_path)


def test_nothing_is_compiled_for_it(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "extensions"))
    trained(model_of(), tmp_path)
    assert not Path(tmp_path / "extensions").exists()
