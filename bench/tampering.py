"""An outer step of TAR against plain passes of the same batches, in time, and against full fine-tuning, in memory."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from bench.processes import elsewhere, memory
from bench.timing import Ratio, ratio
from bulwark.jobs.job import Job
from bulwark.models.embeddings import install
from bulwark.prompts.builder import Prompt
from bulwark.training import engine as engines
from bulwark.training import loop
from bulwark.training.finetuning import Course, Examples
from bulwark.training.objectives import Objective, next_token_loss
from bulwark.training.settings import TrainingSettings
from bulwark.unlearning.tampering.settings import TamperingSettings
from bulwark.unlearning.tampering.tampering import Tampering

VOCABULARY, LENGTH, BATCH, ROWS = 4000, 128, 8, 64
INNER, EVERY = 16, 4
PASSES = INNER + INNER // EVERY + 1


def run() -> Iterator[Ratio]:
    """Outer step / its passes (K + K/s + 1); peak memory of TAR / of full fine-tuning with AdamW, by ZeRO stage."""
    logging.disable(logging.INFO)
    tampering, plain = _Step(Tampering), _Step(Objective)
    yield ratio(
        f"TAR's outer step / {PASSES} forward and backward passes of the same batches",
        tampering.outer,
        plain.passes,
        "≤ 1.1",
        rounds=5,
    )
    for stage in (0, 2, 3):
        once = _peak("tar", stage) / _peak("plain", stage)
        yield Ratio(f"peak memory of TAR / full fine-tuning, ZeRO {stage}", once, once, once, "≤ 1.6")


class _Course(Course):
    """Every data set is the same rows."""

    def examples_from(self, name: str) -> Examples:
        return Examples([], self.examples, 0, 0)


def _model(hidden: int = 256, layers: int = 6) -> LlamaForCausalLM:
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=hidden,
            intermediate_size=hidden * 11 // 4,
            num_hidden_layers=layers,
            num_attention_heads=hidden // 64,
            num_key_value_heads=hidden // 64,
            max_position_embeddings=LENGTH,
        )
    )
    install(model, {"method": "vanilla"})
    return model


def _rows() -> list[Prompt]:
    """Raw text: every token is learned."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, VOCABULARY, (ROWS, LENGTH), generator=generator).tolist()
    return [Prompt(row, list(row), [0] * LENGTH, [], "", False) for row in ids]


def _training(stage: int = 0, steps: int = 1) -> TrainingSettings:
    return TrainingSettings(
        max_steps=steps,
        batch_size=BATCH,
        micro_batch_size=BATCH,
        learning_rate=1e-4,
        zero_stage=stage,
        evaluate_every=None,
        save_minutes=None,
        max_grad_norm=0.0,
        schedule="constant",
    )


def _tampering(training: TrainingSettings, steps: int) -> TamperingSettings:
    return TamperingSettings.model_validate_json(
        TamperingSettings.model_construct(
            data="retain",
            held_out="facts",
            training=training,
            adversaries=[{"name": "forget", "data": "facts"}],
            inner={
                "steps": steps,
                "every": EVERY,
                "learning_rates": [1e-4],
                "batch_size": BATCH,
                "micro_batch_size": BATCH,
            },
            retain={"representations": False},
        ).model_dump_json(warnings=False)
    )


def _objective(
    kind: type[Objective], model: LlamaForCausalLM, training: TrainingSettings, folder: str, steps: int = INNER
) -> Objective:
    if kind is Objective:
        return Objective()
    job = Job("tar", {}, f"{folder}/parent.json", f"{folder}/checkpoint.json", {}, {"seed": 0}, "")
    course = _Course(job, model, [], _rows(), ROWS // BATCH, 1, 0, training, None, "vanilla")
    return Tampering(course, _tampering(training, steps))


class _Step:
    """An engine with an objective, and the batches of one outer step."""

    def __init__(self, kind: type[Objective]) -> None:
        model, training = _model(), _training()
        self.objective = _objective(kind, model, training, ".")
        self.engine = engines.build(model, training, 1)
        course = _Course(None, model, [], _rows(), ROWS // BATCH, 1, 0, training, None, "vanilla")
        self.batches = [
            next(loop.training_batches(course.examples, training, seed=0, rank=0, ranks=1, pad_id=0).of_step(step))
            for step in range(PASSES)
        ]

    def outer(self) -> None:
        self.objective.before_step(self.engine, 0, 1)
        self.engine.set_gradient_accumulation_boundary(True)
        self.objective.backward(self.engine, self.batches[0])
        self.objective.after_backward(self.engine, 0, 1)
        engines.clear_gradients(self.engine)

    def passes(self) -> None:
        self.engine.set_gradient_accumulation_boundary(True)
        for batch in self.batches:
            engines.backward(self.engine, next_token_loss(self.engine, batch))
            engines.clear_gradients(self.engine)


def _peak(name: str, stage: int) -> float:
    """Bytes at the highest beyond what the process holds before there is a model."""
    return elsewhere(_grown, name, stage)


def _grown(name: str, stage: int) -> float:
    logging.disable(logging.INFO)
    torch.set_num_threads(1)
    engines.build(_model(64, 1), _training(stage), 1)  # whatever is loaded once
    with tempfile.TemporaryDirectory() as folder:
        Path("/proc/self/clear_refs").write_text("5")  # the highest so far is forgotten
        before = memory("VmRSS")
        model, training = _model(512, 8), _training(stage, steps=2)
        # The peak does not depend on the number of inner steps.
        objective = _objective(Tampering if name == "tar" else Objective, model, training, folder, steps=EVERY)
        state = Path(folder) / "training"
        loop.train(model, _rows(), [], training, seed=0, state=state, fingerprint={}, pad_id=0, objective=objective)
        return memory("VmHWM") - before
