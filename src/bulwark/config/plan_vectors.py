"""Jobs that make trait vectors, and those that project data on them: see `bulwark.config.plan`."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

from bulwark.config import checks, digests, paths, plan, recipes, sources
from bulwark.config.catalogue import Catalogue, Resolved
from bulwark.config.costs import estimates
from bulwark.config.entities import Trait
from bulwark.config.plan import Work, blocks_of, filled, resolve, work
from bulwark.errors import ConfigurationError
from bulwark.models.anatomy import check_layer

# --- trait vectors ---


@cache
def _trait(catalogue: Catalogue, model: str, recipe: str, trait: str) -> Trait:
    where = f"results/vectors/{model}/{recipe}/…/{trait}"
    recipes.check(recipe, catalogue.steps, where)
    catalogue.model(model, where)
    return catalogue.trait(trait, where)


def contrast_records(catalogue: Catalogue, model: str, recipe: str, trait: str) -> str:
    """The records that a trait is extracted from."""
    entity = _trait(catalogue, model, recipe, trait)
    if entity.dataset is None:
        raise ConfigurationError(
            f'{catalogue.where("traits", trait)}: it names neither a dataset nor a file for the model "{model}" '
            f"(files: {', '.join(entity.files)}). Add one."
        )
    checks.check_contrasts(catalogue, trait)
    return paths.records(entity.dataset, entity.split)


@cache
def contrasts(catalogue: Catalogue, model: str, recipe: str, trait: str) -> Work:
    entity = _trait(catalogue, model, recipe, trait)
    code = digests.code_digest("bulwark.steering.vectors.pairs:generate_pairs")
    time = estimates.traits(catalogue, model, trait, "generate_contrasts")
    return work(catalogue, model, code, time, entity.contrasts.model_dump(mode="json"))


def trait_judge(catalogue: Catalogue, trait: str) -> dict[str, Any] | None:
    """The settings of the judge that scores contrasted and steered answers; None for none."""
    settings = catalogue.judge_of_trait(trait)
    return None if settings is None else settings.model_dump(mode="json")


def judge_files(catalogue: Catalogue, trait: str) -> list[str]:
    """The files of the judge that scores contrasted and steered answers."""
    return plan.judge_files(catalogue.judge_of_trait(trait))


@cache
def pair_judging(catalogue: Catalogue, model: str, recipe: str, trait: str) -> Work:
    settings = _trait(catalogue, model, recipe, trait).filter.model_dump(mode="json", exclude={"minimum"})
    code = _judging_code(catalogue, trait, "bulwark.steering.vectors.pairs:judge_pairs")
    return work(catalogue, model, code, settings=settings)


@cache
def extraction(catalogue: Catalogue, model: str, recipe: str, trait: str) -> Work:
    """With how few pairs a vector is still extracted."""
    entity = _trait(catalogue, model, recipe, trait)
    code = digests.code_digest("bulwark.steering.vectors.extraction:extract")
    time = estimates.traits(catalogue, model, trait, "extract_vectors")
    return work(catalogue, model, code, time, entity.filter.minimum)


def published_vectors(catalogue: Catalogue, model: str, recipe: str, trait: str) -> str:
    """The published file of a trait's vectors on a model."""
    entity = _trait(catalogue, model, recipe, trait)
    sources.check_vectors(catalogue, model, trait)
    return entity.files[model]


def adoption_code(catalogue: Catalogue) -> str:
    return digests.code_digest("bulwark.steering.vectors.storage:adopt")


def published_paths(catalogue: Catalogue) -> str:
    """A regular expression for "<model>/<recipe>/seed<seed>/<trait>.safetensors" of all published files."""
    known = [
        f"{re.escape(model)}/[^/]+/seed[0-9]+/{re.escape(name)}[.]safetensors"
        for name, trait in catalogue.traits.items()
        for model in trait.files
    ]
    return "|".join(known) or "(?!)"


# --- the layer to steer at ---


@cache
def layer_steering(catalogue: Catalogue, model: str, recipe: str, trait: str) -> Work:
    """With how a layer is chosen. Raises ConfigurationError for a candidate that the model does not have."""
    entity, blocks = _trait(catalogue, model, recipe, trait), blocks_of(catalogue, model)
    for layer in entity.choice.candidates or () if blocks else ():
        check_layer(layer, blocks, catalogue.where("traits", trait, "choice", "candidates"))
    code = digests.code_digest("bulwark.steering.vectors.layers:steer")
    time = estimates.traits(catalogue, model, trait, "steer_layers")
    return work(catalogue, model, code, time, entity.choice.model_dump(mode="json"))


def layer_choosing_code(catalogue: Catalogue, trait: str) -> str:
    return _judging_code(catalogue, trait, "bulwark.steering.vectors.layers:choose")


def _judging_code(catalogue: Catalogue, trait: str, function: str) -> str:
    settings = catalogue.judge_of_trait(trait)
    return digests.code_digest(function, *digests.judge_roots(settings and settings.kind))


# --- projections ---


def _projection(catalogue: Catalogue, model: str, recipe: str, projection: str) -> Resolved:
    where = f"results/projections/{model}/{recipe}/…/{projection}.parquet"
    return resolve(catalogue, "projections", model, recipe, projection, where)


def projection_inputs(catalogue: Catalogue, model: str, recipe: str, seed: str, projection: str) -> dict[str, str]:
    """The checkpoint, the data set, and the trait vectors of the checkpoint."""
    resolved = _projection(catalogue, model, recipe, projection)
    return {
        "checkpoint": paths.checkpoint(model, recipe, seed),
        "records": paths.records(resolved.dataset, resolved.split),
        **filled(resolved.inputs, model=model, parent=recipe, seed=seed),
    }


@cache
def projection(catalogue: Catalogue, model: str, recipe: str, projection: str) -> Work:
    resolved = _projection(catalogue, model, recipe, projection)
    code = digests.code_digest("bulwark.steering.vectors.projections:project")
    time = estimates.projection(catalogue, model, projection)
    return work(catalogue, model, code, time, resolved=resolved)
