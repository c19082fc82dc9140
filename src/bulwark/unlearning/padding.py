"""Padding that counts: the losses of TAR's published code, which average over padded positions too."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from pydantic import model_validator

from bulwark.unlearning.settings import ForgettingSettings

if TYPE_CHECKING:
    from bulwark.training.batches import Batch


class PaddingSettings(ForgettingSettings):
    """count_padding: fill every forget example up to training.max_tokens, and count these positions as tokens.

    As TAR's authors' code does; it makes padding tokens a part of what is forgotten. False leaves padding out.
    """

    count_padding: bool = False

    @model_validator(mode="after")
    def _has_a_length(self) -> PaddingSettings:
        if self.count_padding and (self.training.max_tokens is None or self.training.packing):
            raise ValueError("count_padding fills examples up to training.max_tokens: give it, and set packing: false")
        return self


def counted(batch: Batch, length: int, pad_id: int) -> Batch:
    """The batch with every example filled up to `length` tokens, all of them counted; it must not be packed.

    Padding sees the padding before it, which a model given the authors' attention mask does not.
    """
    import torch
    import torch.nn.functional as F

    from bulwark.training.batches import IGNORED

    missing = max(0, length - batch.input_ids.shape[1])
    width = batch.input_ids.shape[1] + missing
    filled = torch.tensor([bool(row) for row in batch.rows], device=batch.input_ids.device)
    rows, places = batch.target_positions // batch.input_ids.shape[1], batch.target_positions % batch.input_ids.shape[1]
    return replace(
        batch,
        input_ids=F.pad(batch.input_ids, (0, missing), value=pad_id),
        attention_mask=filled.to(batch.attention_mask.dtype).unsqueeze(1).expand(-1, width).contiguous(),
        labels=F.pad(batch.labels, (0, missing), value=IGNORED),
        target_positions=rows * width + places,
        step_positions=batch.step_sequences * width,
    )
