"""Which weights a model's folder holds: one set, without doubt.

transformers takes the first set that it finds and puts an adapter on top of it where there is one, silently. A folder
with two of them is a model that nobody named. torch is imported only where two formats have to be compared.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bulwark.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

WHOLE = ("model.safetensors", "pytorch_model.bin")  # in transformers' order; each whole, or in shards with an index
_LIKE_WEIGHTS = re.compile(r"(.*[._-])?(model|weights)([._-].*)?\.(safetensors|bin)")
_OTHERS = re.compile(r"(openvino|consolidated|decoder|encoder).*")  # formats that transformers does not look at
_ADAPTER = re.compile(r"adapter_(config\.json|model.*\.(safetensors|bin|index\.json))")
_MERGE = (
    "from peft import AutoPeftModelForCausalLM; "
    "AutoPeftModelForCausalLM.from_pretrained(FOLDER).merge_and_unload().save_pretrained(NEW)"
)


def weights_of(folder: Path, compare: bool = True) -> list[Path]:
    """The files of the one set of weights in `folder`: shards in the order of their names, or the one file.

    compare: read both formats where there are two; not needed where a manifest says that it has been done.
    Raises CheckpointError if there is none, if a shard is missing, or if it is in doubt which weights are meant: with
    an adapter beside them, several sets, shards that the index does not name, or two formats of other content.
    """
    folder = Path(folder)
    names = {path.name for path in folder.iterdir() if path.is_file()}
    refuse_adapter(folder)
    sets = {kind: found for kind in _kinds() if (found := _set(folder, kind, names))}
    if not sets:
        raise CheckpointError(f"{folder}: there are no weights (model.safetensors, or its shards and their index).")
    for kind, found in sets.items():
        if missing := sorted(found - names):
            raise CheckpointError(f"{folder}: the weights file {missing[0]} is missing (named in {kind}).")
    formats: dict[str, list[str]] = {}
    for kind in sets:
        formats.setdefault(kind.removesuffix(".index.json"), []).append(kind)
    for kinds in formats.values():
        if len(kinds) > 1:
            raise CheckpointError(
                f"{folder}: there are two sets of weights, {kinds[0]} and the shards of {kinds[1]}, of which one is "
                "left over. Remove the one that is not meant."
            )
    chosen = next(iter(sets.values()))
    known = set().union(*sets.values())
    likely = {name for name in names if _LIKE_WEIGHTS.fullmatch(name) and not _OTHERS.fullmatch(name)}
    if strays := sorted(likely - known):
        raise CheckpointError(
            f"{folder}: {', '.join(strays)} look(s) like weights, but the model is read from "
            f"{', '.join(sorted(chosen))}: other shards, or a quantised twin, are left over. Move them out of the "
            "folder, or the ones that are not meant."
        )
    if len(formats) > 1 and compare:
        _refuse_other_content(folder, *(sorted(found) for found in sets.values()))
    return [folder / name for name in sorted(chosen)]


def _kinds() -> Iterator[str]:
    for name in WHOLE:
        yield from (name, f"{name}.index.json")


def _set(folder: Path, kind: str, names: set[str]) -> set[str]:
    """The files that `kind` (a whole file, or an index) stands for; none if it is not there."""
    if kind not in names:
        return set()
    if not kind.endswith(".index.json"):
        return {kind}
    try:
        named = set(json.loads((folder / kind).read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(
            f"{folder / kind}: not an index of shards ({type(error).__name__}: {error}): it is cut or was changed."
        ) from None
    return named


def refuse_adapter(folder: Path) -> None:
    """Raise CheckpointError if files of an adapter lie in `folder`, beside whole weights or alone."""
    names = {path.name for path in folder.iterdir() if path.is_file()} if folder.is_dir() else set()
    files = sorted(name for name in names if _ADAPTER.fullmatch(name))
    if not files:
        return
    whole = any(kind in names for kind in _kinds())
    listed = ", ".join(files)
    if whole:
        raise CheckpointError(
            f"{folder}: beside whole weights lies an adapter ({listed}), which transformers would put on top of them. "
            f"If the weights hold it already, remove these files. If not, merge it and name the new folder: {_MERGE}"
        )
    base: Any = None
    if "adapter_config.json" in files:
        try:
            base = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))["base_model_name_or_path"]
        except (ValueError, KeyError, TypeError):
            base = None
    raise CheckpointError(
        f"{folder}: there is an adapter only ({listed}); the model that it belongs to lies elsewhere"
        f"{f' ({base})' if base else ''}. Merge it and name the new folder: {_MERGE}"
    )


def _refuse_other_content(folder: Path, first: list[str], second: list[str]) -> None:
    """Raise CheckpointError unless the two formats hold the same tensors, as far as they have the same names."""
    import torch

    read = _tensors(folder, first)
    other = _tensors(folder, second)
    common = sorted(read.keys() & other.keys())
    unequal = next((name for name in common if not torch.equal(read[name](), other[name]())), None)
    if unequal is None and common:
        return
    what = f"{unequal} is another" if unequal else "they have no tensor in common"
    raise CheckpointError(
        f"{folder}: {', '.join(first)} and {', '.join(second)} hold different weights ({what}). transformers reads "
        "the former only. Remove the ones that are not meant."
    )


def _tensors(folder: Path, names: list[str]) -> dict[str, Any]:
    """{name of a tensor: how to read it}."""
    import torch
    from safetensors import SafetensorError, safe_open

    found: dict[str, Any] = {}
    for name in names:
        path = folder / name
        try:
            if path.suffix == ".safetensors":
                file = safe_open(path, framework="pt").__enter__()
                found |= {key: lambda file=file, key=key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            else:
                content: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
                found |= {key: lambda value=value: value for key, value in content.items()}
        except (SafetensorError, OSError, RuntimeError, ValueError) as error:
            raise CheckpointError(f"{path}: not readable as weights, it was cut or changed: {error}.") from None
    return found
