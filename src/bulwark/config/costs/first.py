"""What to run first: studies with one seed and one model each, for at most a tenth of the whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bulwark.config.catalogue import Catalogue
from bulwark.config.costs.estimates import parameters
from bulwark.config.costs.graph import Job, makers, of_study, reached

SHARE = 0.1


@dataclass(frozen=True)
class First:
    """studies: {study: (model, seed)}. jobs: places of those that they need. overlay: that asks for these alone."""

    studies: dict[str, tuple[str, int]]
    jobs: frozenset[int]
    overlay: str


def first(catalogue: Catalogue, jobs: Sequence[Job]) -> First:
    """The studies that fit, those with claims before others and the cheaper before the dearer.

    Of a study's models the one with the fewest parameters is taken, and of its seeds the first.
    """
    made_by = makers(jobs)
    most = SHARE * _hours(jobs, range(len(jobs)))
    offers = []
    for name, study in catalogue.studies.items():
        if not study.models:  # an overlay leaves it out
            continue
        model, seed = min(study.models, key=lambda model: _size(catalogue, model)), study.seeds[0]
        needed = reached(jobs, of_study(catalogue, name, made_by, [model], [seed]))
        if needed:
            offers.append((not study.claims, _hours(jobs, needed), name, model, seed, needed))
    taken: dict[str, tuple[str, int]] = {}
    places: set[int] = set()
    for _, _, name, model, seed, needed in sorted(offers, key=lambda offer: offer[:3]):
        if _hours(jobs, places | needed) <= most:
            taken[name] = model, seed
            places |= needed
    return First(taken, frozenset(places), _overlay(catalogue, taken) if taken else "")


def _hours(jobs: Sequence[Job], places: range | set[int]) -> float:
    """Of what is scarce: GPU hours, and threads where no job has a GPU."""
    gpus = any(job.gpus for job in jobs)
    return sum(jobs[place].time.hours * (jobs[place].gpus if gpus else jobs[place].threads) for place in places)


def _size(catalogue: Catalogue, model: str) -> float:
    entity = catalogue.model(model)
    return parameters(catalogue, model) if entity.parameters or entity.source.path else 0.0


def _overlay(catalogue: Catalogue, taken: Mapping[str, tuple[str, int]]) -> str:
    """What lists these studies alone, without what they show of others."""
    lines = ["name: first", f"run: [{', '.join(taken)}]", "studies:"]
    for name, (model, seed) in taken.items():
        said = {"models": [model], "seeds": [seed]}
        for kind in ("tables", "figures", "claims"):
            listed = getattr(catalogue.studies[name], kind)
            kept = [each for each in listed if getattr(catalogue, kind)[each].study in taken]
            said |= {kind: kept} if len(kept) < len(listed) else {}
        lines.append(f"  {name}: {{{', '.join(f'{key}: [{_listed(value)}]' for key, value in said.items())}}}")
    return "\n".join(lines)


def _listed(values: Sequence[object]) -> str:
    return ", ".join(map(str, values))
