"""SDD's data: harmful requests, each with a good answer to something else (Chen et al. 2025, arXiv 2507.21182, Sec. 4).

Which answers are irrelevant is told by the cosine of request and answer as vectors of TF-IDF (scikit-learn's, words of
all requests and answers), in place of the sentence embeddings of the paper, which need a model of their own.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bulwark.data.records import Conversation, Preference, Turn
from bulwark.errors import RecordError

_ROWS = 1024  # requests that are compared with all answers at once


def paired(
    requests: Sequence[Preference],
    answers: Sequence[Conversation],
    *,
    most_similar: float,
    count: int | None,
    seed: int,
    where: str = "",
) -> list[Conversation]:
    """`count` requests, or all of them, in a random order, each with an answer drawn from the irrelevant ones.

    requests: of them only the prompts are used; answers: of them the last response. An answer is irrelevant if its
    cosine with the request's text is below `most_similar`. An answer may be used again.
    Raises RecordError for a request to which every answer is relevant, and where fewer are there than asked for.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    if count is not None and count > len(requests):
        raise RecordError(f"{where}: {len(requests)} requests are fewer than the {count} pairs that are asked for.")
    draw = np.random.default_rng(seed)
    order = draw.permutation(len(requests))[:count]
    asked = [" ".join(turn.text for turn in requests[n].turns) for n in order]
    given = [next(turn.text for turn in reversed(answer.turns) if turn.role == "response") for answer in answers]
    vectors = TfidfVectorizer().fit([*asked, *given])
    columns = vectors.transform(given).T.tocsc()
    pairs = []
    for start in range(0, len(order), _ROWS):
        part = order[start : start + _ROWS]
        cosines = (vectors.transform(asked[start : start + _ROWS]) @ columns).toarray()
        for number, row in zip(part.tolist(), cosines, strict=True):
            request = requests[number]
            possible = np.flatnonzero(row < most_similar)
            if not len(possible):
                raise RecordError(
                    f'{where}: every answer is similar to the request "{request.id}" (cosine from {row.min():.2f}). '
                    "Give more answers, or raise most_similar."
                )
            answer = given[int(draw.choice(possible))]
            turns = (*request.turns, Turn(role="response", text=answer))
            pairs.append(Conversation(id=request.id, turns=turns))
    return pairs
