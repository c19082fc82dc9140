"""Which layer to steer at: every layer is tried on the questions that the vector was extracted from.

Persona vectors (Chen et al. 2025, arXiv 2507.21509, App. B.4): answers without any system turn under
h_l + coefficient·v_l, one layer at a time; the layer whose answers a judge finds to show the trait most is taken. The
choice is a report for whoever writes `layers` into a step: arXiv 2609.10142 fixes one at about 70 % of the depth.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from bulwark import files
from bulwark.data.contrasts import Contrast
from bulwark.data.records import read_records, write_records
from bulwark.errors import BulwarkError, of_record
from bulwark.judges import JudgeSettings
from bulwark.models.open import open_model
from bulwark.models.placing.loading import Loading
from bulwark.settings import Closed
from bulwark.steering.vectors.pairs import judgements_of, turns_of
from bulwark.steering.vectors.settings import LayerChoice

log = logging.getLogger(__name__)


class Steered(Closed):
    """One answer of a steered model; layer null: of the model as it is."""

    id: str
    layer: int | None
    trait: str
    question: str
    response: str
    tokens: int
    finish: str
    expected: str | None = None
    rubric: str | None = None


def steer(
    checkpoint: Path,
    vector: Path,
    records: Path,
    choice: LayerChoice,
    *,
    seed: int,
    dtype: str,
    threads: int,
    output: Path,
    code: str = "",
    loading: Loading | None = None,
) -> None:
    """Answer the questions of `records` without steering and under each candidate layer; write `Steered` rows.

    Finished answers of an interrupted run are kept beside `output`, for this code (a digest). Raises ConfigurationError
    for a candidate outside 1 … N-1 or a vector of another model, BulwarkError for a published file without the pool.
    """
    from bulwark.models.anatomy import blocks_of
    from bulwark.steering.intervention import steer_generation
    from bulwark.steering.settings import VectorSettings
    from bulwark.steering.vectors.fusion import load_fused

    longest, new = choice.decoding.max_prompt_tokens, choice.decoding.max_new_tokens
    subject = open_model(checkpoint, dtype, max_tokens=longest, new_tokens=new, threads=threads, loading=loading)
    layers = len(blocks_of(subject.model))
    candidates = choice.candidates or tuple(range(1, layers))
    questions = list({contrast.question: contrast for contrast in read_records(Path(records), Contrast)}.values())
    trait = questions[0].trait
    at = load_fused(
        VectorSettings(traits=(trait,), layers=candidates, pool=choice.pool),
        {trait: Path(vector)},
        subject.model,
        files.digest(subject.manifest),
    ).at
    prompts = [
        (contrast.id, of_record(contrast.id, subject.builder.prompt, turns_of(contrast.question)))
        for contrast in questions
    ]
    rows, partials = [], []
    for layer in (None, *candidates):
        name = layer or "unsteered"
        partials.append(Path(f"{output}.{name}.partial"))
        log.info("layer %s of %d", name, layers)
        steering = contextlib.nullcontext()
        if layer is not None:
            steering = steer_generation(subject.model, layer, at[layer], choice.coefficient, choice.positions)
        settled = subject.fingerprint(
            code=code, layer=layer, choice=choice.model_dump(mode="json"), vector=files.digest(Path(vector))
        )
        with steering:
            answers = subject.generate(prompts, choice.decoding, seed=seed, partial=partials[-1], fingerprint=settled)
        rows += [
            Steered(
                id=f"{contrast.id}@{name}",
                layer=layer,
                **{key: getattr(contrast, key) for key in ("trait", "question", "expected", "rubric")},
                **{key: getattr(answer, key) for key in ("response", "tokens", "finish")},
            )
            for contrast, answer in zip(questions, answers, strict=True)
        ]
    write_records(output, rows)
    for partial in partials:
        partial.unlink(missing_ok=True)


def choose(
    steered: Path, settings: JudgeSettings, choice: LayerChoice, output: Path, cache: Path | None = None
) -> dict[str, Any]:
    """Judge the answers and write the mean scores by layer, and the layer with the highest one, to `output` (JSON).

    Of equal layers the more coherent is taken, then the lower; null if none shows more of the trait than the model as
    it is. Values lie on 0 … 100; `failed` counts the answers without a judgement, which are left out of the means.
    Raises BulwarkError if no layer, or not the unsteered model, has any judgement.
    """
    rows = read_records(Path(steered), Steered)
    asked = [(row.id, row.question, row.response, row.expected, row.rubric) for row in rows]
    score = judgements_of(asked, rows[0].trait, settings, cache)
    coherence = judgements_of(asked, "coherence", settings, cache)
    values = [(row.layer, s.value, c.value) for row, s, c in zip(rows, score, coherence, strict=True)]
    table = {layer: _means([v for v in values if v[0] == layer]) for layer in dict.fromkeys(row.layer for row in rows)}
    usable = {layer: row for layer, row in table.items() if layer is not None and row["score"] is not None}
    unsteered = table[None]["score"]
    if not usable or unsteered is None:
        whose = "of any layer" if not usable else "of the unsteered model"
        raise BulwarkError(f"{steered}: no answer {whose} could be judged, so no layer can be chosen.")
    best = max(usable, key=lambda layer: (usable[layer]["score"], usable[layer]["coherence"] or 0, -layer))
    better = usable[best]["score"] > unsteered
    result = {
        "trait": rows[0].trait,
        "layer": best if better else None,
        "choice": choice.model_dump(mode="json"),
        "judge": settings.model_dump(mode="json"),
        "unsteered": table[None],
        "layers": {str(layer): told for layer, told in table.items() if layer is not None},
        "answers_digest": files.digest(Path(steered)),
    }
    files.write_text(output, json.dumps(result, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    summary = f"{rows[0].trait}: layer {best} scores {usable[best]['score']:.1f}, the unsteered model {unsteered:.1f}"
    if better:
        log.info("%s", summary)
    else:
        log.warning("%s: no layer shows more of the trait. Try another choice.coefficient.", summary)
    return result


def _means(values: Sequence[tuple[int | None, float | None, float | None]]) -> dict[str, Any]:
    scores = [score for _, score, _ in values if score is not None]
    coherence = [value for _, _, value in values if value is not None]
    return {
        "score": fmean(scores) if scores else None,
        "coherence": fmean(coherence) if coherence else None,
        "n": len(values),
        "failed": len(values) - len(scores),
    }
