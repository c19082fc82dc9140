"""The role embedding: one input embedding for vanilla, ISE and ASIDE models of every causal-LM family.

A token's role is carried in its id, `id + V * number` with V the rows of the embedding: 0 for a response, and k + 1 for
role k of the model's `roles` (by default instruction, data). `RoleEmbedding` decodes it, looks the row up and applies

* `vanilla`: nothing.
* `ise`: adds a learned vector per role (Wu et al. 2024, arXiv 2410.09102).
* `aside`: turns role k by k times `alpha` in the planes of adjacent coordinates (Zverev et al. 2025, arXiv 2503.10566,
  Sec. 3, has two roles), with the options of the authors' code: a learned matrix, a learned shift, a growing angle.

This file imports torch and transformers only: a copy lies in every checkpoint folder as `role_embedding.py`, and
`AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)` runs that copy, without bulwark. Its errors are
therefore plain ValueErrors.
"""

from __future__ import annotations

import functools
import json
import math
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, PreTrainedConfig, PreTrainedModel

ROLES = ("instruction", "data")
KNOWN_ROLES = ("system", "instruction", "tool", "data")
MODEL_TYPE = "bulwark_role_embedding"  # unknown to transformers, so that config.json cannot be read as a plain model
ARCHITECTURE = "BulwarkRoleEmbeddingForCausalLM"  # likewise: whoever goes by the architecture's name finds no class
CODE_FILE = "role_embedding.py"
DEFAULTS = {
    "method": "vanilla",
    "alpha": math.pi / 2,
    "direction": "right",
    "learned": False,
    "linear_shift": False,
    "response_role": "data",
}
_CHOICES = {"method": ("vanilla", "ise", "aside"), "direction": ("right", "left")}
_QUARTER_TURN_TOLERANCE = 1e-6  # radians; the published commands write pi/2 with nine digits

Direction = Literal["right", "left"]


def rotate(x: Tensor, direction: Direction = "right") -> Tensor:
    """Rotate adjacent coordinate pairs of `x` [..., hidden] by a quarter turn (ASIDE, Sec. 3).

    Exact in every dtype: (a, b) becomes (b, -a) for "right" (row vector times M) and (-b, a) for "left".
    """
    a, b = x[..., 0::2], x[..., 1::2]
    return torch.stack((b, -a) if direction == "right" else (-b, a), dim=-1).flatten(-2)


def rotate_by(x: Tensor, angle: float, direction: Direction = "right") -> Tensor:
    """Rotate adjacent coordinate pairs of `x` [..., hidden] by `angle` radians, computed in at least float32.

    "right": (a, b) becomes (cos·a + sin·b, -sin·a + cos·b); "left" is its inverse. A quarter turn is exact.
    """
    if abs(angle - math.pi / 2) < _QUARTER_TURN_TOLERANCE:
        return rotate(x, direction)
    cos, sin = math.cos(angle), math.sin(angle) * (1 if direction == "right" else -1)
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    a, b = wide[..., 0::2], wide[..., 1::2]
    return torch.stack((cos * a + sin * b, cos * b - sin * a), dim=-1).flatten(-2).to(x.dtype)


class RoleEmbedding(nn.Embedding):
    """An embedding of ids that carry a role; takes the place, and the very `weight`, of a plain embedding.

    Args:
        plain: the embedding to replace. Its `weight` Parameter is shared, so tying with the output layer stays.
        description: see `described`. Learned parts are `role_shift` [roles, hidden] and, for `learned`, the matrix
            `rotation` [hidden, hidden], which starts at M(alpha).
        initializer_range: standard deviation with which `role_shift` starts.

    Raises ValueError for a description that is not valid, an odd hidden size with `aside`, or an embedding class
    whose look-up does more than scale.
    """

    def __init__(self, plain: nn.Embedding, description: dict[str, Any], initializer_range: float = 0.02):
        # On the meta device nothing is allocated: the weight is replaced by the shared one in a moment.
        alike = ("padding_idx", "max_norm", "norm_type", "scale_grad_by_freq", "sparse")
        options = {name: getattr(plain, name) for name in alike}
        super().__init__(plain.num_embeddings, plain.embedding_dim, **options, device="meta")
        self.weight = plain.weight
        self.scale = _scale_of(plain)
        description = described(description)
        self.method: str = description["method"]
        self.alpha: float = description["alpha"]
        self.direction: Direction = description["direction"]
        self.response_role: str = description["response_role"]
        self.roles: tuple[str, ...] = tuple(description.get("roles", ROLES))
        self._angle: float = description.get("angle", self.alpha)
        hidden, like = plain.embedding_dim, {"dtype": plain.weight.dtype, "device": plain.weight.device}
        if self.method == "aside" and hidden % 2:
            raise ValueError(
                f"The method aside rotates pairs of coordinates, but the hidden size of this model is odd ({hidden}). "
                "Use a model with an even hidden size, or the method ise or vanilla."
            )
        self.known_rows = self.num_embeddings
        self.register_parameter("role_shift", None)
        self.register_parameter("rotation", None)
        if self.method == "ise" or description["linear_shift"]:
            self.role_shift = nn.Parameter(torch.empty(len(self.roles), hidden, **like).normal_(0.0, initializer_range))
        if description["learned"]:
            self.rotation = nn.Parameter(_rotation_matrix(hidden, self.alpha).to(**like))
        self.train(plain.training)

    @property
    def angle(self) -> float:
        """The present angle in radians; set it while training for ASIDE's gradual rotation (alpha when not set).

        A `learned` matrix takes part only while the angle is alpha, where it starts.
        """
        return self._angle

    @angle.setter
    def angle(self, radians: float) -> None:
        if self.method != "aside":
            raise ValueError(f'Only the method "aside" has an angle; this embedding is "{self.method}".')
        if not math.isfinite(radians):
            raise ValueError(f"The angle must be a finite number of radians, found {radians}.")
        self._angle = float(radians)

    @property
    def description(self) -> dict[str, Any]:
        """What builds this embedding again; names `angle` only if it is not alpha, `roles` if they are not `ROLES`."""
        description = {
            "method": self.method,
            "alpha": self.alpha,
            "direction": self.direction,
            "learned": self.rotation is not None,
            "linear_shift": self.method == "aside" and self.role_shift is not None,
            "response_role": self.response_role,
        }
        description |= {} if self.roles == ROLES else {"roles": list(self.roles)}
        return description if self._angle == self.alpha else description | {"angle": self._angle}

    def forward(self, ids: Tensor) -> Tensor:
        """Embed `ids` [...], each id + V * number of its role, as [..., hidden].

        Raises IndexError for an id outside [0, (1 + roles) V) on the CPU; on a GPU, and compiled, the look-up fails.
        Raises ValueError after `resize_token_embeddings` until `install` is called: ids made before mean other roles.
        """
        rows, last = self.num_embeddings, len(self.roles)
        if rows != self.known_rows:
            raise ValueError(
                f"The vocabulary was resized from {self.known_rows} to {rows} rows, and a role is carried as "
                f"id + rows * role. Make a new PromptBuilder for {rows} rows, then call install(model)."
            )
        known = ids.device.type == "cpu" and ids.numel() and not torch.compiler.is_compiling()
        if known and not 0 <= int(ids.min()) <= int(ids.max()) < (1 + last) * rows:
            raise IndexError(
                f"Token ids must lie in [0, {(1 + last) * rows}): a plain id below {rows} plus {rows} times a role of "
                f"0 to {last}. Found ids from {int(ids.min())} to {int(ids.max())}."
            )
        # An id out of range keeps its excess through the clamp, so that the look-up refuses it without a device sync.
        roles = torch.div(ids, rows, rounding_mode="floor").clamp(0, last)
        embedded = super().forward(ids - roles * rows)
        if self.scale is not None:
            embedded = embedded * torch.tensor(self.scale, dtype=self.weight.dtype, device="cpu")  # rounded, as Gemma's
        return self.with_roles(embedded, roles)

    def with_roles(self, embedded: Tensor, roles: Tensor) -> Tensor:
        """Apply the method to plain embeddings [..., hidden] of tokens with `roles` [...], numbers (inputs_embeds)."""
        if self.method == "vanilla":
            return embedded
        place = torch.where(roles == 0, self.roles.index(self.response_role), roles - 1).unsqueeze(-1)
        shift = None if self.role_shift is None else self.role_shift[0]
        for later in range(1, len(self.roles)):  # what is at place k is turned k times
            chosen = place >= later
            embedded = self._rotated(embedded, chosen) if self.method == "aside" else embedded
            shift = shift if self.role_shift is None else torch.where(chosen, self.role_shift[later], shift)
        return embedded if shift is None else embedded + shift.to(embedded.dtype)

    def _rotated(self, embedded: Tensor, chosen: Tensor) -> Tensor:
        if self.rotation is not None and self._angle == self.alpha:
            matrix = self.rotation if self.direction == "right" else self.rotation.T
            return torch.where(chosen, (embedded @ matrix).to(embedded.dtype), embedded)
        return embedded if self._angle == 0.0 else _RotateWhere.apply(embedded, chosen, self._angle, self.direction)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {self.description}"


def described(description: dict[str, Any]) -> dict[str, Any]:
    """Return a full description, with the defaults filled in.

    Keys: method ("vanilla", "ise", "aside"), alpha (radians), direction ("right", "left"), learned, linear_shift,
    response_role (of the roles, what a response token is treated as) and, optionally, angle (see `RoleEmbedding.angle`)
    and roles: some of KNOWN_ROLES, instruction and data among them, in the order in which ids and `aside` count them;
    left out where they are ROLES. Raises ValueError naming the key that is unknown, of the wrong type or contradictory.
    """
    unknown = sorted(set(description) - set(DEFAULTS) - {"angle", "roles"})
    if unknown:
        raise ValueError(f"The role embedding's description has no key {unknown[0]!r}. Known: {', '.join(DEFAULTS)}.")
    full = DEFAULTS | dict(description)
    roles = full.pop("roles", ROLES)
    known = isinstance(roles, list | tuple) and all(role in KNOWN_ROLES and roles.count(role) == 1 for role in roles)
    if not known or not {*ROLES} <= {*roles}:
        raise ValueError(
            f"The role embedding's roles must be different ones of {', '.join(KNOWN_ROLES)}, with "
            f"{' and '.join(ROLES)} among them, found {roles!r}."
        )
    full |= {} if tuple(roles) == ROLES else {"roles": list(roles)}
    for key, choices in {**_CHOICES, "response_role": roles}.items():
        if full[key] not in choices:
            raise ValueError(f"The role embedding's {key} must be one of {', '.join(choices)}, found {full[key]!r}.")
    for key in ("learned", "linear_shift"):
        if not isinstance(full[key], bool):
            raise ValueError(f"The role embedding's {key} must be true or false, found {full[key]!r}.")
        if full[key] and full["method"] != "aside":
            raise ValueError(f'The role embedding\'s option {key} belongs to "aside", not to "{full["method"]}".')
    for key in {"alpha", "angle"} & set(full):
        number = isinstance(full[key], int | float) and not isinstance(full[key], bool)
        if not number or not math.isfinite(full[key]):
            raise ValueError(f"The role embedding's {key} must be a finite number of radians, found {full[key]!r}.")
        full[key] = float(full[key])
    return full


def install(model: PreTrainedModel, description: dict[str, Any] | None = None) -> RoleEmbedding:
    """Replace the input embedding of a causal LM, in place, by a role embedding, and describe it in its config.

    The weight stays the same Parameter (tied output layers stay tied). `None`, and a description equal to the present
    one, keep an installed role embedding with its learned parts, and take note of a resized vocabulary; another
    description starts them anew.
    Raises ValueError when the model cannot carry a role embedding; the text says why.
    """
    present = model.get_input_embeddings()
    if isinstance(present, RoleEmbedding) and (description is None or described(description) == present.description):
        present.known_rows = present.num_embeddings
        return present
    _refuse_unsuitable(model, present)
    embedding = RoleEmbedding(present, description or DEFAULTS, _initializer_range(model.config))
    describe_in(model.config, embedding)
    model.set_input_embeddings(embedding)
    return embedding


def role_embedding_of(model: nn.Module) -> RoleEmbedding:
    """Return the role embedding of a model, also through the wrappers of PEFT, DeepSpeed and torch."""
    found = [module for module in model.modules() if isinstance(module, RoleEmbedding)]
    if not found:
        raise ValueError("The model has no role embedding: load it with load_model, or install one.")
    return found[-1]  # PEFT's modules_to_save puts the copy that is in use after the original


def describe_in(config: PreTrainedConfig, embedding: RoleEmbedding) -> None:
    """Write the embedding's present description into the model's config, which then saves itself accordingly.

    A vanilla embedding leaves an ordinary config. Any other makes the config one of `_role_config`, so that also
    transformers' own `save_pretrained` writes a folder that cannot be loaded without its role embedding.
    """
    family = getattr(type(config), "family", type(config))
    if embedding.method == "vanilla":
        if type(config) is not family:
            for key in ("role_embedding", "auto_map", "base_architectures"):
                config.__dict__.pop(key, None)
        config.__class__ = family
    else:
        if family.model_type not in CONFIG_MAPPING:
            raise ValueError(
                f'The model type "{family.model_type}" is not part of transformers: a checkpoint with a role embedding '
                "could not be loaded again. Use a model whose code is in transformers."
            )
        config.__class__ = _role_config(family)
        config.role_embedding = embedding.description


class RoleEmbeddingConfig:
    """Reads config.json of a folder with a role embedding; what its `auto_map` names for AutoConfig."""

    @classmethod
    def from_pretrained(cls, folder: str | Path, **kwargs) -> PreTrainedConfig:
        """Return the model family's own config (a subclass, see `_role_config`) with the key `role_embedding`."""
        content, kwargs = PreTrainedConfig.get_config_dict(folder, **kwargs)
        family_type = content.pop("base_model_type", None)
        if content.get("model_type") != MODEL_TYPE or family_type not in CONFIG_MAPPING:
            raise ValueError(
                f'{folder}: config.json must have the model_type "{MODEL_TYPE}" and a base_model_type that '
                f'transformers {transformers.__version__} knows; found "{content.get("model_type")}", "{family_type}".'
            )
        content["role_embedding"] = described(content.get("role_embedding", {}))
        # In memory too it stays the unknown name: a serving engine chooses its own class by it, without the roles.
        content.setdefault("base_architectures", content.get("architectures"))
        content["architectures"] = [ARCHITECTURE]
        result = CONFIG_MAPPING[family_type].from_dict(content | {"model_type": family_type}, **kwargs)
        config = result[0] if isinstance(result, tuple) else result
        config.__class__ = _role_config(type(config))
        return result

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoConfig") -> None:
        """Asked by transformers of remote code; nothing to note, because the config writes its own `auto_map`."""


class RoleEmbeddingForCausalLM:
    """Loads a folder with a role embedding; what its `auto_map` names for AutoModelForCausalLM."""

    @classmethod
    def from_pretrained(cls, folder: str | Path, *args, config=None, output_loading_info: bool = False, **kwargs):
        """Return the family's own model class with a `RoleEmbedding` in it; arguments as for any transformers model.

        Raises ValueError if a weight is missing in the folder or unknown to the model.
        """
        config = RoleEmbeddingConfig.from_pretrained(folder) if config is None else config
        family = _model_class(config)
        model, info = _with_role_embedding(family).from_pretrained(
            folder, *args, config=config, output_loading_info=True, **kwargs
        )
        model.__class__ = family
        for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
            if info[problem]:
                names = ", ".join(str(name) for name in list(info[problem])[:5])
                raise ValueError(f"{folder}: the weights do not fit config.json; {problem.replace('_', ' ')}: {names}.")
        return (model, info) if output_loading_info else model

    @classmethod
    def _from_config(cls, config: PreTrainedConfig, **kwargs) -> PreTrainedModel:
        """Build the model with fresh weights (AutoModelForCausalLM.from_config)."""
        family = _model_class(config)
        model = _with_role_embedding(family)._from_config(config, **kwargs)
        model.__class__ = family
        return model

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoModelForCausalLM") -> None:
        """Asked by transformers of remote code; nothing to note, because the config writes its own `auto_map`."""


class _RotateWhere(torch.autograd.Function):
    """Rotate the rows of `x` [..., hidden] where `mask` [..., 1]; the gradient is turned back, x is not kept."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, mask: Tensor, angle: float, direction: Direction) -> Tensor:
        return torch.where(mask, rotate_by(x, angle, direction), x)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        _, mask, ctx.angle, ctx.direction = inputs
        ctx.save_for_backward(mask)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        (mask,) = ctx.saved_tensors
        back = "left" if ctx.direction == "right" else "right"
        return _RotateWhere.apply(gradient, mask, ctx.angle, back), None, None, None


def _rotation_matrix(hidden: int, angle: float) -> Tensor:
    """M(angle) [hidden, hidden]: blocks [[cos, -sin], [sin, cos]]; x @ M is `rotate_by(x, angle, "right")`."""
    return rotate_by(torch.eye(hidden), angle, "right")


def _initializer_range(config: PreTrainedConfig) -> float:
    return getattr(config.get_text_config(), "initializer_range", None) or 0.02


def _scale_of(plain: nn.Embedding) -> float | None:
    """The factor by which an embedding class multiplies its rows (Gemma: the root of the hidden size)."""
    if isinstance(plain, RoleEmbedding):
        return plain.scale
    if type(plain).forward is nn.Embedding.forward:
        return None
    for name in ("scalar_embed_scale", "embed_scale"):  # the second is a buffer in Gemma, without value while loading
        scale = getattr(plain, name, None)
        if isinstance(scale, int | float):
            return float(scale)
    raise ValueError(
        f"The look-up of {type(plain).__name__} is neither a plain nor a scaled one: it cannot carry roles."
    )


def _refuse_unsuitable(model: PreTrainedModel, present: nn.Module) -> None:
    name = type(model).__name__
    if not isinstance(model, PreTrainedModel) or getattr(model.config, "is_encoder_decoder", False):
        raise ValueError(f"{name} is not a causal language model of transformers; install before wrapping it.")
    if not isinstance(present, nn.Embedding):
        raise ValueError(f"The input embedding of {name} is a {type(present).__name__}, not an nn.Embedding.")
    if present._forward_hooks or present._forward_pre_hooks or hasattr(present, "_hf_hook"):
        raise ValueError(f"The input embedding of {name} carries hooks, which would be lost: install before them.")
    for path, module in model.named_modules():
        if isinstance(module, nn.Embedding) and path.endswith("embed_tokens_per_layer"):
            raise ValueError(f"{name} looks token ids up in a second table, {path}, which knows no roles.")


@functools.cache
def _role_config(family: type[PreTrainedConfig]) -> type[PreTrainedConfig]:
    """The family's config class, but for what it writes: a config.json that only `RoleEmbeddingConfig` reads."""

    def to_json_file(self, json_file_path, use_diff: bool = True) -> None:
        family.to_json_file(self, json_file_path, use_diff)
        file, module = Path(json_file_path), Path(CODE_FILE).stem
        content = json.loads(file.read_text(encoding="utf-8"))
        if content.get("architectures") != [ARCHITECTURE]:  # of a model, not of a config that was read
            content["base_architectures"] = content.get("architectures")
        content |= {
            "model_type": MODEL_TYPE,
            "architectures": [ARCHITECTURE],
            "base_model_type": family.model_type,
            "auto_map": {
                "AutoConfig": f"{module}.{RoleEmbeddingConfig.__name__}",
                "AutoModelForCausalLM": f"{module}.{RoleEmbeddingForCausalLM.__name__}",
            },
        }
        file.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        (file.parent / CODE_FILE).write_text(Path(__file__).read_text(encoding="utf-8"), encoding="utf-8")

    def reduce(self, _protocol=None):
        return _restored_config, (family, self.__dict__.copy())

    # Another name than the family's: transformers recognises configs by class name, and would then use its plain model.
    methods = {"family": family, "to_json_file": to_json_file, "__reduce_ex__": reduce, "__module__": __name__}
    return type(f"RoleEmbedding{family.__name__}", (family,), methods)


def _restored_config(family: type[PreTrainedConfig], state: dict[str, Any]) -> PreTrainedConfig:
    config = object.__new__(_role_config(family))
    config.__dict__.update(state)
    return config


def _model_class(config: PreTrainedConfig) -> type[PreTrainedModel]:
    names = getattr(config, "base_architectures", None) or config.architectures or ["(none)"]
    found = getattr(transformers, names[0], None)
    if found is None or not hasattr(config, "role_embedding"):
        raise ValueError(
            f"config.json must describe a role embedding and an architecture that transformers "
            f"{transformers.__version__} knows; found the architecture {names[0]}."
        )
    return found


@functools.cache
def _with_role_embedding(family: type[PreTrainedModel]) -> type[PreTrainedModel]:
    """`family` with the role embedding in place from the start, so that loading finds its parameters to fill."""

    def __init__(self, config, *args, **kwargs):
        family.__init__(self, config, *args, **kwargs)
        plain = self.get_input_embeddings()
        self.set_input_embeddings(RoleEmbedding(plain, config.role_embedding, _initializer_range(config)))

    # Name and module are the family's: transformers chooses attention and weight conversions by them.
    return type(family.__name__, (family,), {"__init__": __init__, "__module__": family.__module__})
