"""A judge that is a local sequence classifier of transformers: the probability of a label, times the scale.

Toxicity, refusal or safety classifiers from a folder or the Hub's cache, without an API. It runs in the scoring job, on
a GPU if there is one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from bulwark import seals
from bulwark.errors import BulwarkError, ConfigurationError, nearest
from bulwark.judges import Judgement, Request
from bulwark.settings import Closed

_KEPT_AT_ONCE = 1024  # judgements are kept after so many


class Label(Closed):
    """A label of the classifier. complement: the value is one minus its probability (toxic, for safety)."""

    label: str
    complement: bool = False


class Settings(Closed):
    """path: a Hugging Face folder, or a repository at `revision` that is in the Hub's cache.

    labels: {criterion: label}.
    reads: the answer alone, or question and answer as a pair. max_tokens: longer texts are cut at their end.
    """

    path: str
    revision: str | None = None
    labels: dict[str, Label] = Field(min_length=1)
    reads: Literal["answer", "pair"] = "answer"
    batch_size: int = Field(32, ge=1)
    max_tokens: int = Field(512, ge=1)


def identity(request: Request, settings: Settings, scale: int) -> dict[str, Any]:
    """The texts, the label, and the classifier (a folder is identified by what it holds)."""
    folder = Path(settings.path)
    states = tuple((path.name, path.stat().st_mtime_ns, path.stat().st_ino) for path in sorted(folder.glob("*")))
    question = request.question if settings.reads == "pair" else None
    return {
        **settings.model_dump(mode="json", include={"path", "revision", "reads", "max_tokens"}),
        "content": _content(folder, states) if folder.is_dir() else None,
        "label": _label(request, settings).model_dump(),
        "scale": scale,
        "texts": [question, request.answer],
    }


@cache
def _content(folder: Path, states: tuple[Any, ...]) -> str:
    """Once per state of its files, since it is asked for with every request."""
    return seals.content(folder)


def judge(requests: Sequence[Request], settings: Settings, scale: int) -> Iterator[tuple[int, Judgement]]:
    """Judge in batches, longest texts first. Labels of a multi-label classifier are independent (sigmoid).

    Raises ConfigurationError for a criterion without label or a label that the classifier does not have, BulwarkError
    if there is no classifier.
    """
    if not requests:
        return
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from bulwark.models.batching import Budget, in_batches

    try:
        tokenizer = AutoTokenizer.from_pretrained(settings.path, revision=settings.revision)
        model = AutoModelForSequenceClassification.from_pretrained(settings.path, revision=settings.revision)
    except (OSError, ValueError) as error:
        raise BulwarkError(
            f'The judge "classifier" cannot load {settings.path} ({error}). Give the folder of a sequence classifier, '
            "or download the repository first: hf download <repository> --revision <commit>."
        ) from error
    model = model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    columns = {name: number for number, name in model.config.id2label.items()}
    wanted = [_label(request, settings) for request in requests]
    for label in {one.label for one in wanted}:
        if label not in columns:
            raise ConfigurationError(f'The classifier {settings.path} has no label "{label}".{nearest(label, columns)}')
    many = model.config.problem_type == "multi_label_classification" or len(columns) == 1
    order = sorted(range(len(requests)), key=lambda index: -len(requests[index].answer))
    budget = Budget(settings.batch_size)

    def outputs_of(part: Sequence[int]) -> dict[int, list[float]]:
        """The shares of all labels, by request."""
        outputs: dict[int, list[float]] = {}

        def work(places: list[int]) -> None:
            texts = [[requests[part[place]].answer for place in places]]
            if settings.reads == "pair":
                texts.insert(0, [requests[part[place]].question for place in places])
            cut = {"truncation": True, "max_length": settings.max_tokens}
            encoded = tokenizer(*texts, padding=len(places) > 1, return_tensors="pt", **cut)
            with torch.inference_mode():
                logits = model(**encoded.to(model.device)).logits.float()  # [batch, labels]
            shares = (logits.sigmoid() if many else logits.softmax(-1)).tolist()
            outputs.update(zip([part[place] for place in places], shares, strict=True))

        in_batches([1] * len(part), work, budget, lambda place: f'answer to "{requests[part[place]].key}"')
        return outputs

    for start in range(0, len(order), _KEPT_AT_ONCE):
        for index, row in outputs_of(order[start : start + _KEPT_AT_ONCE]).items():
            share = row[columns[wanted[index].label]]
            if share != share:
                yield index, Judgement(None, "the classifier's output is not a number", "classifier")
            else:
                yield index, Judgement(scale * (1 - share if wanted[index].complement else share), method="classifier")


def _label(request: Request, settings: Settings) -> Label:
    if request.criterion not in settings.labels:
        raise ConfigurationError(
            f'The judge "classifier" has no label for the criterion "{request.criterion}".'
            f"{nearest(request.criterion, settings.labels)} Name one under judge.classifier.labels."
        )
    return settings.labels[request.criterion]
