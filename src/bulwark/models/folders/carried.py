"""The files of a model's folder that a change of its weights does not concern, and that go along with it.

An image processor, a processor's configuration, a vocabulary, a licence: whoever loads the model needs them, and no
step changes them. They are copied from the folder of the base model to each checkpoint, and from there to the next.
"""

from __future__ import annotations

import logging
import re
import shutil
from pathlib import Path

from bulwark.files import readable
from bulwark.models import manifests

log = logging.getLogger(__name__)

_LARGEST = 100 * 2**20
"""Bytes; whatever is larger is no configuration."""
_WRITTEN = {  # by every save, as the model and its tokenizer are then
    *("config.json", "generation_config.json", "role_embedding.py", manifests.MANIFEST, manifests.BASE_MANIFEST),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja"),
    *("job.json", "training_args.bin", "trainer_state.json"),
}
_WEIGHTS = re.compile(
    r".*\.(safetensors|bin|pt|pth|ckpt|gguf|ggml|h5|msgpack|onnx|onnx_data|npz|mlmodel|index\.json|seal\.json)"
)
_ABOUT_THE_PARENT = re.compile(r"README.*", re.IGNORECASE)  # a model card is about the weights, which are others now


def carry_on(parent: str | Path, folder: str | Path) -> list[str]:
    """Copy to `folder` what goes along from the checkpoint `parent` (its manifest); return the names of the files.

    Call it before the model is saved: what is saved takes the place of what was copied.
    """
    folder = Path(folder)
    origin = manifests.weights_folder(parent)
    names = names_carried(parent)
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).unlink(missing_ok=True)
        shutil.copyfile(origin / name, folder / name)
        readable(folder / name)
    return names


def names_carried(parent: str | Path) -> list[str]:
    """What goes along from a checkpoint: what it was given itself, or, of a base model, all that no save writes."""
    origin = manifests.weights_folder(parent)
    content = manifests.read_manifest(parent, verify=False)
    if content.get("kind", "base") == "base" and (origin / manifests.MANIFEST).is_file():
        content = manifests.read_manifest(origin, verify=False)  # a checkpoint that was adopted as a base model
    if content.get("kind", "base") != "base" or "carried" in content:
        return [name for name in content.get("carried", []) if (origin / name).is_file()]
    names = []
    for path in sorted(origin.iterdir()):
        name = path.name
        if not path.is_file() or name.startswith(".") or name in _WRITTEN:
            continue
        if _WEIGHTS.fullmatch(name) or _ABOUT_THE_PARENT.fullmatch(name):
            continue
        if path.stat().st_size > _LARGEST:
            log.warning("%s is not carried on: it is larger than any configuration.", path)
            continue
        names.append(name)
    return names
