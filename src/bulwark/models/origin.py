"""How a base model becomes available: downloaded from the Hub at a pinned commit, or adopted from the user's folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from bulwark.data.downloads import fetch
from bulwark.errors import CheckpointError
from bulwark.models import manifests
from bulwark.models.folders.weights import refuse_adapter, weights_of

# Weights in one format, once: not the originals that some repositories hold beside them.
MODEL_FILES = ("model*.safetensors", "*.json", "*.model", "*.txt", "*.jinja", "*.md", "LICENSE*")
_TOKENIZER_FILES = ("*.json", "*.model", "*.txt", "*.jinja")
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "tokenizer_config.json")


def fetch_model(source: dict[str, Any], template: str, output: str | Path) -> None:
    """Download a base model around its manifest `output` (results/models/{model}/model.json).

    source: `hub` and `revision` of the weights; `tokenizer` (None, or its own hub and revision) takes the place of the
    one beside the weights, as when a pretrained model is given the chat tokenizer of its family; `pad_token` (or None)
    is set in it. template: name of the prompt template, recorded in the manifest.
    Raises DownloadError as `fetch` does, and CheckpointError for a pad token that the tokenizer does not know and for a
    repository that leaves in doubt which weights are meant.
    """
    output = Path(output)
    folder = fetch(source["hub"], source["revision"], output.parent, "model", MODEL_FILES)
    pinned = source.get("tokenizer")
    if pinned:
        origin = fetch(pinned["hub"], pinned["revision"], folder / ".tokenizer", "model", _TOKENIZER_FILES)
        _replace_tokenizer(origin, folder, source.get("pad_token"))
    elif source.get("pad_token"):
        _replace_tokenizer(folder, folder, source["pad_token"])
    weights_of(folder)
    content = {"template": template, "source": source, "weights": ".", "provenance": manifests.provenance()}
    manifests.write_manifest(output, content)


def adopt_model(path: str | Path, template: str, output: str | Path) -> None:
    """Write the manifest `output` of a base model that stays where it is: the user's folder `path`.

    Raises CheckpointError if the folder holds no model with its tokenizer, or leaves in doubt which weights are meant.
    """
    path, output = Path(path), Path(output)
    refuse_adapter(path)
    if not (path / "config.json").is_file():
        raise CheckpointError(f"{path} has no config.json, so it is no Hugging Face model folder. Check source.path.")
    if not any((path / name).is_file() for name in _TOKENIZERS):
        raise CheckpointError(f"{path} has no tokenizer. Save it there with tokenizer.save_pretrained.")
    weights_of(path)
    output.parent.mkdir(parents=True, exist_ok=True)
    weights = Path(os.path.relpath(path, output.parent)).as_posix()
    source = {"path": str(path)}
    content = {"template": template, "source": source, "weights": weights, "provenance": manifests.provenance()}
    manifests.write_manifest(output, content)


def _replace_tokenizer(origin: Path, folder: Path, pad_token: str | None) -> None:
    """Put the tokenizer of `origin`, with its padding token set, into `folder` in place of the one there."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(origin, local_files_only=True, trust_remote_code=False)
    if pad_token is not None:
        if pad_token not in tokenizer.get_vocab():
            raise CheckpointError(
                f'The tokenizer in {origin} does not know the padding token "{pad_token}". Name one of its own tokens '
                f"in source.pad_token: {', '.join(tokenizer.all_special_tokens)}."
            )
        tokenizer.pad_token = pad_token
    beside = ("special_tokens_map.json", "added_tokens.json", "merges.txt", "chat_template.jinja", "chat_template.json")
    for name in (*_TOKENIZERS, *beside):
        (folder / name).unlink(missing_ok=True)
    tokenizer.save_pretrained(folder)
