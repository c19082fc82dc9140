"""The front door from Python: open a checkpoint and ask it.

    model = bulwark.load("results/checkpoints/miniature/aside/seed0")
    model.answer("Name the colour of the first word.", data="...")

Instruction and data are given apart, and the model is told which is which.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bulwark.data.records import Turn
from bulwark.errors import CheckpointError
from bulwark.models import checkpoints
from bulwark.models.decoding import Decoding
from bulwark.models.open import LanguageModel, open_model, prompt_limit
from bulwark.models.placing.loading import Loading
from bulwark.settings import validated

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NEW_TOKENS = 256


def load(
    checkpoint: str | Path,
    device: str | None = None,
    dtype: str | None = None,
    template: str | None = None,
    loading: Loading | None = None,
) -> Assistant:
    """Open a checkpoint for answering.

    checkpoint: its folder, its checkpoint.json, or any folder with a causal LM and its tokenizer.
    device: "cpu", "cuda", ...; None takes a GPU if there is one. dtype: name of a torch dtype; None is bfloat16 on a
    GPU and float32 on the CPU. template: name of a prompt template; None takes the one that the manifest names, and
    "chat" for a folder without a manifest. loading: how its weights are held, on several GPUs say; None is on one
    device.
    Raises CheckpointError if the folder is not a whole checkpoint, BulwarkError if there are fewer GPUs.
    """
    path = Path(checkpoint)
    if not path.exists():
        raise CheckpointError(f"{path} does not exist. Give a checkpoint folder, or make it with snakemake first.")
    if device is None:
        device, fitting = checkpoints.device_and_dtype("bfloat16")
    else:
        fitting = "float32" if device == "cpu" else "bfloat16"
    return Assistant(open_model(path, dtype or fitting, device=device, template=template, loading=loading))


class Assistant:
    """A model that answers instructions about data."""

    def __init__(self, language_model: LanguageModel):
        self.language_model = language_model
        self.model, self.builder = language_model.model, language_model.builder

    def answer(self, instruction: str, data: str | None = None, system: str | None = None, **decoding: Any) -> str:
        """Answer one instruction. `decoding`: see `answers`."""
        return self.answers([(instruction, data)], system=system, **decoding)[0]

    def answers(
        self,
        pairs: Iterable[tuple[str, str | None] | str],
        system: str | None = None,
        seed: int = 0,
        **decoding: Any,
    ) -> list[str]:
        """Answer many (instruction, data) pairs, or bare instructions, in batches; the answers in the same order.

        decoding: the settings of `bulwark.models.decoding.Decoding`; greedy, at most 256 new tokens (or half of what
        the model can attend to, if that is less), unless given. Prompts above `max_prompt_tokens` (default: what the
        model can attend to) lose the end of their data, with a warning. So are words told that the tokenizer does not
        know (the miniature knows some hundreds): the model cannot read them.
        Raises ConfigurationError for an unknown setting.
        """
        limit = self.language_model.positions
        new_tokens = min(NEW_TOKENS, limit // 2) if limit else NEW_TOKENS
        settings = validated(Decoding, {"max_new_tokens": new_tokens, **decoding}, "decoding")
        self.builder.max_tokens = prompt_limit(
            limit, settings.max_prompt_tokens, settings.max_new_tokens, f"The {type(self.model).__name__}"
        )
        conversations = [_turns(*((pair, None) if isinstance(pair, str) else pair), system) for pair in pairs]
        prompts = [(str(i), self.builder.prompt(turns)) for i, turns in enumerate(conversations)]
        if unknown := _unknown_words(self.language_model.tokenizer, conversations):
            warnings.warn(
                f"The model does not know {', '.join(unknown[:10])}{' …' if len(unknown) > 10 else ''}: its tokenizer "
                "has no token for it. Use its own words (docs/miniature.md shows those of the miniature).",
                stacklevel=2,
            )
        cut = sum(prompt.truncated for _, prompt in prompts)
        if cut:
            warnings.warn(
                f"{cut} of {len(prompts)} prompts were cut to {self.builder.max_tokens} tokens: the end of their data "
                "is missing.",
                stacklevel=2,
            )
        return [answer.response for answer in self.language_model.generate(prompts, settings, seed=seed)]


def _unknown_words(tokenizer: PreTrainedTokenizerBase, conversations: Iterable[Sequence[Turn]]) -> list[str]:
    """The words of conversations that become the tokenizer's unknown token, in their order; none if it has no such."""
    unknown = tokenizer.unk_token_id
    if unknown is None or unknown == tokenizer.eos_token_id:
        return []
    words = dict.fromkeys(word for turns in conversations for turn in turns for word in turn.text.split())
    return [word for word in words if unknown in tokenizer(word, add_special_tokens=False)["input_ids"]]


def _turns(instruction: str, data: str | None, system: str | None) -> Sequence[Turn]:
    given = (("system", system), ("instruction", instruction), ("data", data))
    return [Turn(role=role, text=text) for role, text in given if text is not None and (text.strip() or role != "data")]
