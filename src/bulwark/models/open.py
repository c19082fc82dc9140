"""An open checkpoint: the model, its tokenizer and the prompt builder that gives every token its role.

Everything that asks a model for something goes through `LanguageModel`. Nothing heavy is imported at the top, so that
modules which only name the type stay light.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bulwark import files, seals
from bulwark.errors import BulwarkError
from bulwark.models import manifests
from bulwark.models.placing.loading import Loading

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from bulwark.models.answers import Answer
    from bulwark.models.batching import Budget
    from bulwark.models.decoding import Decoding
    from bulwark.models.likelihoods import Continuation, LogLikelihood
    from bulwark.models.residuals import Residuals
    from bulwark.prompts.builder import Prompt, PromptBuilder

log = logging.getLogger(__name__)

DEFAULT_TEMPLATE = "chat"


@dataclass
class LanguageModel:
    """A model in evaluation mode and how it is spoken to.

    template, builder: the name of its prompt template, and a builder with it. manifest: of the checkpoint, None for a
    model that has none. budget: tokens of a batch that is generated for, from the free memory at the first call; where
    memory has run out, later calls begin with what was left of it. loading: how its weights are held, and so are those
    of a second model that it is compared with.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    template: str
    builder: PromptBuilder
    manifest: Path | None = None
    budget: Budget | None = None
    loading: Loading = field(default_factory=Loading)

    @property
    def device(self) -> str:
        """The kind of device that holds the weights: "cpu", "cuda", …"""
        return self.model.device.type

    @property
    def dtype(self) -> str:
        """The number type of the weights: "float32", "bfloat16", …"""
        return str(self.model.dtype).removeprefix("torch.")

    @property
    def positions(self) -> int | None:
        """The most tokens that the model reads, prompt and answer together; None where its configuration says none."""
        from bulwark.models.anatomy import positions_of

        return positions_of(self.model)

    @property
    def description(self) -> dict[str, str]:
        """What identifies the checkpoint and its prompts: its entities and digest, and the builder's digest."""
        content = manifests.read_manifest(self.manifest, verify=False)
        named = {key: content[key] for key in ("model", "recipe", "seed") if key in content}
        return {**named, "digest": files.digest(self.manifest), "prompt": self.builder.digest}

    def fingerprint(self, **settled: Any) -> str:
        """A digest of what decides an answer besides prompt, decoding and seed; settled: more of it (steering, say).

        Of the checkpoint it is what its files hold: one that is written again with equal weights answers alike.
        """
        held = {"digest": seals.content(self.manifest), "attention": self.loading.attention}
        return files.digest({**self.description, **held, "dtype": f"torch.{self.dtype}", **settled})

    def _refuse_resized(self) -> None:
        """Raise BulwarkError if the builder's ids mean other roles to the model: its vocabulary or roles changed."""
        from bulwark.models.embeddings import role_embedding_of

        embedding = role_embedding_of(self.model)
        rows = embedding.num_embeddings
        if self.builder.roles != embedding.roles:
            raise BulwarkError(
                f"The prompt builder has the roles {', '.join(self.builder.roles)}, the model "
                f"{', '.join(embedding.roles)}. Make a new PromptBuilder with these and put it in `builder`."
            )
        if rows != self.builder.vocabulary:
            raise BulwarkError(
                f"The prompt builder encodes roles for {self.builder.vocabulary} rows, but the model's embedding has "
                f"{rows}: it was resized. Make a new PromptBuilder for {rows} rows and put it in `builder`."
            )

    def generate(self, prompts: Sequence[tuple[str, Prompt]], decoding: Decoding, **options: Any) -> list[Answer]:
        """One answer per (key, prompt), in the given order.

        options: seed, partial, fingerprint, stop_when, on_rows, ids and shown of `generation.generate`.
        """
        from bulwark.models.batching import Budget, cache_token_budget
        from bulwark.models.generation import generate

        self._refuse_resized()
        if self.budget is None:
            self.budget = Budget(cache_token_budget(self.model))
        return generate(
            self.model,
            prompts,
            decoding,
            tokenizer=self.tokenizer,
            stop_ids=self.builder.stop_ids,
            pad_id=self.builder.pad_id,
            token_budget=self.budget,
            **options,
        )

    def log_likelihoods(self, requests: Sequence[Continuation], **options: Any) -> list[LogLikelihood]:
        """The log-likelihood of every continuation, in the given order.

        options: partial and fingerprint of `likelihoods.log_likelihoods`.
        """
        from bulwark.models.likelihoods import log_likelihoods

        self._refuse_resized()
        return log_likelihoods(self.model, requests, pad_id=self.builder.pad_id, **options)

    def residuals(self, prompts: Sequence[Prompt], **options: Any) -> Residuals:
        """The residual stream at the last token of the prompts, by layer.

        options: winsorise, final_norm and keep of `residuals.last_token_residuals`.
        """
        from bulwark.models.residuals import last_token_residuals

        self._refuse_resized()
        return last_token_residuals(self.model, prompts, self.builder.pad_id, **options)


def open_model(
    checkpoint: str | Path,
    dtype: str,
    *,
    max_tokens: int | None = None,
    new_tokens: int = 0,
    threads: int | None = None,
    device: str | None = None,
    template: str | None = None,
    loading: Loading | None = None,
) -> LanguageModel:
    """Open a checkpoint (its manifest or folder), or any folder with a causal LM and its tokenizer.

    dtype: name of a torch dtype. device: None takes a GPU if there is one, and otherwise the CPU in float32 whatever
    `dtype` says. max_tokens, new_tokens: of the longest prompt and of what is generated after it; of a longer one the
    builder cuts the data (see `prompt_limit`). threads: of torch; None leaves them as they are. template: in place of
    the one that the manifest names, which without a manifest is "chat". loading: how its weights are held; None is on
    one device.
    Raises CheckpointError if the folder is not a whole checkpoint.
    """
    import torch

    from bulwark.models import anatomy, checkpoints
    from bulwark.models.embeddings import role_embedding_of
    from bulwark.models.generation import stop_ids_of
    from bulwark.models.placing import spread
    from bulwark.prompts.builder import PromptBuilder

    if threads is not None:
        torch.set_num_threads(threads)
    if manifests.manifest_path(checkpoint).is_file():
        manifest, folder, named = manifests.open_manifest(checkpoint)
    else:
        manifest, folder, named = None, Path(checkpoint), DEFAULT_TEMPLATE
    if device is None:
        device, dtype = checkpoints.device_and_dtype(dtype)
    loading = loading or Loading()
    model = spread.load(folder, dtype, device, loading).eval()
    tokenizer = checkpoints.load_tokenizer(folder)
    template = template or named
    limit = prompt_limit(anatomy.positions_of(model), max_tokens, new_tokens, f"{folder}")
    stops = stop_ids_of(model, tokenizer)
    embedding = role_embedding_of(model)
    builder = PromptBuilder(tokenizer, template, embedding.num_embeddings, limit, stops, embedding.roles)
    return LanguageModel(model, tokenizer, template, builder, manifest, loading=loading)


def prompt_limit(positions: int | None, max_tokens: int | None, new_tokens: int, model: str) -> int | None:
    """The longest prompt (or example, with `new_tokens` 0): `max_tokens`, or what a model of so many positions reads.

    Half of the positions is kept for the prompt, however many `new_tokens` are asked for; the answers end where the
    positions do. A lower limit than was asked for is told in the log.
    """
    if positions is None:
        return max_tokens
    room = positions - min(new_tokens, positions // 2)
    if (max_tokens or 0) + new_tokens > positions:
        log.warning(
            "%s reads %d tokens, fewer than are asked for (%s of a prompt, %d new ones): longer prompts are cut to %d, "
            "and answers end there; both are counted",
            *(model, positions, max_tokens or "any number", new_tokens, min(room, max_tokens or room)),
        )
    return min(room, max_tokens or room)
