"""A checkpoint with roles as an ordinary model, whose roles are ids: for serving engines that know no code of ours.

What a role does to a token depends on the token and the role alone, so a table with a row for each (token, role) says
all of it: row id + V·role of the input embedding is what `RoleEmbedding` gives for that id. The model's own class then
computes the rest as before. It must never answer with an id of V or above, and its probabilities must be those over V
ids; but an engine's output layer has as many rows as the table, and no bias. A constant is needed that every last
hidden state contains, and RMSNorm has one, its ε:

    x / √(mean x² + ε)  is kept if coordinates are added to the residual stream that are always a, with
    Σx² + k·a² + ε'·(d + k) = Σx² + ε·d,   and the norm's weight is multiplied by √(d / (d + k)).

No block reads or writes the k coordinates that are added, so they stay a. The last norm gives them a weight G, and the
output rows of all ids from V on are -G at the first of them and 0 elsewhere: a logit of -G²·a / rms(x), so low that its
probability is 0 in any number format. The rows of plain ids are 0 there, so their logits stay what they were.
"""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from bulwark import files
from bulwark.errors import CheckpointError
from bulwark.models import embeddings, manifests
from bulwark.models.checkpoints import load_model, load_tokenizer
from bulwark.models.embeddings import RoleEmbedding, role_embedding_of

WIDER = 64  # coordinates that are added: a multiple of what kernels like
SHARE = 1 / 64  # of ε that they stand for; the rest stays ε', also of norms over heads, which do not have them
LOWEST = 1e7  # what -G²·a is, to be divided by the root mean square of a hidden state
LARGEST = 6e4  # of one weight, so that float16 holds it
TOLERANCE = 1e-5  # of logits, relative to the largest
ROLES_FILE = "roles.json"
_CHECKED = (4, 24)  # conversations of random ids and roles by which a folder is checked, and their length
_SHARD_SIZE = "5GB"


def export(checkpoint: str | Path, out: str | Path) -> float:
    """Write a checkpoint as an ordinary folder `out` of transformers, read it again, and compare.

    checkpoint: a checkpoint.json or the folder that holds it. Returns the largest difference of a logit of a plain id
    over random ids in random roles, relative to the largest logit. One model is in memory at a time.
    Raises CheckpointError, with the reason, if `out` holds something, if there are no roles to write, if the family
    cannot be written so, or if what was written differs by more than TOLERANCE (in bfloat16 and float16: by more than
    rounding does).
    """
    folder, out = Path(checkpoint), Path(out)
    folder = folder.parent if folder.name in (manifests.MANIFEST, manifests.BASE_MANIFEST) else folder
    if out.exists() and any(out.iterdir()):
        raise CheckpointError(f"{out} is there and not empty. Name a new folder.")
    model = load_model(folder, dtype="auto")
    tokenizer = load_tokenizer(folder)
    embedding = role_embedding_of(model)
    _refuse(folder, model, embedding)
    ids, before = _asked(model, embedding)
    description, rows = embedding.description, embedding.num_embeddings
    largest = float(before.abs().max())
    written, dtype, stops = _written(model, embedding, folder), model.dtype, model.generation_config
    family = type(model)
    del model, embedding
    out.mkdir(parents=True, exist_ok=True)
    with torch.device("meta"):
        shape = family(written[0]).to(dtype)
    shape.generation_config = stops
    shape.save_pretrained(out, state_dict=written[1], max_shard_size=_SHARD_SIZE)
    del written, shape
    tokenizer.save_pretrained(out)
    for file in out.glob("*.safetensors"):
        files.readable(file)
    numbers = {name: place + 1 for place, name in enumerate(description.get("roles", embeddings.ROLES))}
    roles = {"rows": rows, "numbers": numbers}
    files.write_text(out / ROLES_FILE, json.dumps({**roles, "embedding": description}, indent=2) + "\n")
    files.write_text(out / "README.md", _readme(folder, roles))
    plain = AutoModelForCausalLM.from_pretrained(out, dtype=dtype, local_files_only=True, trust_remote_code=False)
    difference = _difference(plain.eval(), ids, before, rows) / largest
    allowed = TOLERANCE if dtype == torch.float32 else 8 * torch.finfo(dtype).eps
    if not difference <= allowed:
        raise CheckpointError(
            f"{out}: the ordinary model gives other logits than {folder}, by {difference:.1e} of the largest where "
            f"{allowed:.1e} is allowed. Its family computes something that this export does not know: serve the "
            "checkpoint with `bulwark serve`, and remove this folder."
        )
    return difference


def _refuse(folder: Path, model: PreTrainedModel, embedding: RoleEmbedding) -> None:
    """Raise CheckpointError, with the reason, for what cannot be written as an ordinary model or is one already."""
    config = model.config
    if embedding.method == "vanilla":
        raise CheckpointError(f"{folder} is an ordinary model already: roles change nothing in it. Serve it.")
    if getattr(config, "quantization_config", None) is not None:
        raise CheckpointError(
            f"{folder}: its weights are quantised, and rows and columns cannot be added to them. Export the checkpoint "
            "from before, and quantise the export."
        )
    if config.get_text_config() is not config:
        raise CheckpointError(f"{folder}: a {type(model).__name__} reads more than text; only text models can be.")
    if getattr(config, "rms_norm_eps", None) is None:
        raise CheckpointError(
            f"{folder}: a {type(model).__name__} has no RMSNorm, from whose ε a constant is taken that keeps it from "
            "answering with a role's ids. Serve it with `bulwark serve`."
        )


def _asked(model: PreTrainedModel, embedding: RoleEmbedding) -> tuple[Tensor, Tensor]:
    """Random ids in random roles [conversations, tokens], and the model's logits for plain ids."""
    generator = torch.Generator().manual_seed(0)
    plain = torch.randint(0, embedding.num_embeddings, _CHECKED, generator=generator)
    roles = torch.randint(0, 1 + len(embedding.roles), _CHECKED, generator=generator)
    ids = plain + roles * embedding.num_embeddings
    with torch.no_grad():
        return ids, model(ids).logits.float()


def _difference(model: PreTrainedModel, ids: Tensor, before: Tensor, rows: int) -> float:
    """The largest difference of the logits of plain ids; infinite if an id of a role has any probability."""
    with torch.no_grad():
        logits = model(ids).logits.float()
    of_roles = torch.softmax(logits, -1)[..., rows:].sum()
    return math.inf if float(of_roles) > TOLERANCE else float((logits[..., :rows] - before).abs().max())


def _written(model: PreTrainedModel, embedding: RoleEmbedding, folder: Path) -> tuple[Any, dict[str, Tensor]]:
    """The config and the weights of the ordinary model. The given model loses its weights one after the other."""
    old = model.config
    hidden, rows, roles = old.hidden_size, embedding.num_embeddings, len(embedding.roles)
    config = _config(model, rows * (1 + roles))
    constant = math.sqrt(SHARE * old.rms_norm_eps * hidden / WIDER)
    gate = min(math.sqrt(LOWEST / constant), LARGEST)
    shrunk = math.sqrt(hidden / config.hidden_size)
    with torch.device("meta"):
        wider = type(model)(config)
    target = {name: tensor.shape for name, tensor in wider.state_dict().items()}
    norms = {
        f"{name}.weight": module
        for name, module in model.named_modules()
        if "RMSNorm" in type(module).__name__ and target.get(f"{name}.weight") == (config.hidden_size,)
    }
    last = list(norms)[-1]
    own = {id(module): name for name, module in model.named_modules()}
    table, head = f"{own[id(embedding)]}.weight", f"{own[id(model.get_output_embeddings())]}.weight"
    weights: dict[str, Tensor] = {}
    state = model.state_dict(keep_vars=True)
    for name, shape in target.items():
        if name == table:
            weights[name] = _table(embedding, roles, constant, config.hidden_size, _scale(wider.get_input_embeddings()))
        elif name == head:
            weights[name] = state[name].new_zeros(shape)
            weights[name][:rows, :hidden] = state[name].detach()
            weights[name][rows:, hidden] = -gate
        elif name in norms:
            weights[name] = _norm(norms[name], shrunk, gate if name == last else 0.0, config.hidden_size)
        elif name in state:
            weights[name] = _padded(state[name].detach(), shape)
            state[name].data = state[name].new_empty(0)
        else:
            raise CheckpointError(f"{folder}: there is no {name}, which an ordinary {type(model).__name__} has.")
    return config, weights


def _config(model: PreTrainedModel, rows: int) -> Any:
    """The family's own config, wider, with a row for each id in each role, and nothing of ours."""
    old = model.config
    family = getattr(type(old), "family", type(old))
    content = copy.deepcopy(old.to_dict())
    for key in ("role_embedding", "auto_map", "base_architectures", "base_model_type", "model_type", "architectures"):
        content.pop(key, None)
    heads = getattr(old, "head_dim", None) or old.hidden_size // old.num_attention_heads
    config = family.from_dict(content)
    config.vocab_size, config.hidden_size, config.head_dim = rows, old.hidden_size + WIDER, heads
    config.rms_norm_eps = (1 - SHARE) * old.rms_norm_eps * old.hidden_size / config.hidden_size
    config.tie_word_embeddings, config.architectures = False, [type(model).__name__]
    config.dtype = model.dtype
    return config


def _norm(module: nn.Module, shrunk: float, gate: float, wider: int) -> Tensor:
    """Its weight for the wider stream. Gemma's multiplies by 1 + weight, which a look at its output tells."""
    weight = module.weight.detach().float()
    with torch.no_grad():
        ones = torch.ones_like(module.weight)
        offset = float((module(ones).float() - weight).mean().round())  # of ones, a norm gives its factors
    factors = torch.full((wider,), 0.0)
    factors[: len(weight)] = (weight + offset) * shrunk
    factors[len(weight)] = gate
    return (factors - offset).to(module.weight.dtype)


def _scale(embedding: nn.Module) -> float:
    """By what a class multiplies the rows of its table, rounded as it does."""
    scale = embeddings._scale_of(embedding)
    return 1.0 if scale is None else float(torch.tensor(scale, dtype=embedding.weight.dtype))


def _table(embedding: RoleEmbedding, roles: int, constant: float, wider: int, scale: float) -> Tensor:
    """Rows of all ids in all roles, and the constant beside them.

    scale: by what the wider model multiplies its rows; Gemma's is the root of the hidden size, so it is another one.
    """
    rows, hidden = embedding.weight.shape
    like, own = embedding.weight.dtype, _scale(embedding)
    table = torch.zeros((rows * (1 + roles), wider), dtype=like)
    table[:, hidden:] = constant / scale
    factor = own / scale
    if embedding.role_shift is None:  # linear, so that the scale makes no difference
        plain = embedding.weight.detach()
    else:
        embedding, factor = copy.deepcopy(embedding).float(), 1 / scale
        plain = embedding.weight.detach() * own
    with torch.no_grad():
        for role in range(1 + roles):
            made = embedding.with_roles(plain, torch.full((rows,), role))
            table[role * rows : (role + 1) * rows, :hidden] = (made * factor).to(like)
    return table


def _padded(tensor: Tensor, shape: torch.Size) -> Tensor:
    """A weight with zeros where the stream is wider: what is read from there and written to there."""
    if tensor.shape == shape:
        return tensor.clone()
    padded = tensor.new_zeros(shape)
    padded[tuple(slice(0, size) for size in tensor.shape)] = tensor
    return padded


def _readme(folder: Path, roles: dict[str, Any]) -> str:
    rows, numbers = roles["rows"], roles["numbers"]
    named = ", ".join(f"{name} {number}" for name, number in {"response": 0, **numbers}.items())
    data = numbers["data"]
    return f"""# {folder.parent.name}, with its roles as token ids

An ordinary model of transformers {transformers.__version__}, made by `bulwark export --for plain` from
`{folder}`. It needs no code of ours.

**The role of a token is part of its id.** The tokenizer gives ids below V = {rows}. The numbers of the roles:
{named}. The id of a token in a role is

    id + V * number

Give the ids of the system's and user's words and of the chat template the number of the instruction, and those of
untrusted text (documents, what a tool returned) the number of the data. A prompt whose ids are all below V is a prompt
without roles: nothing defends it. An engine that takes text and tokenises by itself therefore serves this model
without its defense; use an interface that takes ids (`prompt_token_ids` in vLLM, `input_ids` in SGLang).

```python
V, INSTRUCTION, DATA = {rows}, {numbers["instruction"]}, {data}
asked = [token + V * INSTRUCTION for token in tokenizer.encode(before_the_data)]
asked += [token + V * DATA for token in tokenizer.encode(the_data, add_special_tokens=False)]
asked += [token + V * INSTRUCTION for token in tokenizer.encode(after_the_data, add_special_tokens=False)]
```

Text that looks like a special token must not become one: encode data with `split_special_tokens=True`. Bulwark's own
`PromptBuilder` does all of this; `roles.json` says the same for programs.

Answers are plain ids, below V: the logits of all others are so low that their probability is 0. The hidden state is
{WIDER} wider than the original's, and every {{token, role}} has a row of its own, so the folder is larger.
"""
