"""Linear probes: logistic regression on standardised hidden states (scikit-learn).

`StreamedProbes` has one probe per row of the residual stream, trained batch by batch, so that nothing but the batch
and the probes is in memory. `direction` is the probe for a concept, without an intercept, fitted exactly.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

import numpy as np
from sklearn.linear_model import LogisticRegression, SGDClassifier
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from bulwark.interpretability.samples import Token
from bulwark.interpretability.states import Taken, over_tokens
from bulwark.prompts.builder import Prompt

CHUNK = 64  # prompts between which the order of training is random; within a chunk the longest come first
TOKENS = 2**12  # of a batch: what is taken of them at every layer stands in memory at once


class StreamedProbes:
    """Probes over rows of the residual stream; each call takes the states of one batch, {row: [tokens, hidden]}.

    Standardisation and the probe's steps (stochastic gradient descent on the logistic loss, with scikit-learn's own
    schedule and an L2 penalty of 1e-4) are scikit-learn's `partial_fit`. Weights are averaged over the steps, because
    the last ones are noisy where the labels overlap. seed: of the order within a batch.
    """

    def __init__(self, rows: Sequence[int], seed: int) -> None:
        self._scalers = {row: StandardScaler() for row in rows}
        self._probes = {row: SGDClassifier(loss="log_loss", average=True, random_state=seed) for row in rows}

    def standardise(self, states: Mapping[int, Tensor]) -> None:
        """Take a batch into the means and deviations, of which training and prediction make use."""
        for row, scaler in self._scalers.items():
            scaler.partial_fit(states[row].double().numpy())

    def learn(self, states: Mapping[int, Tensor], labels: Sequence[int]) -> None:
        """Take the probes' steps on a batch."""
        for row, probe in self._probes.items():
            probe.partial_fit(self._scaled(row, states), np.asarray(labels), classes=[0, 1])

    def predict(self, states: Mapping[int, Tensor]) -> dict[int, np.ndarray]:
        """{row: the labels that its probe gives to the tokens}."""
        return {row: probe.predict(self._scaled(row, states)) for row, probe in self._probes.items()}

    def _scaled(self, row: int, states: Mapping[int, Tensor]) -> np.ndarray:
        return self._scalers[row].transform(states[row].double().numpy())


def accuracies(
    model: nn.Module,
    prompts: Sequence[Prompt],
    training: Sequence[Token],
    tested: Sequence[Token],
    rows: Sequence[int],
    pad_id: int,
    *,
    epochs: int,
    seed: int,
    token_budget: int = TOKENS,
) -> dict[int, np.ndarray]:
    """Of each of `tested`, whether a probe that was trained on `training` names its label: {row: [tested], bool}.

    One pass over the training prompts standardises, then `epochs` train, then one over the tested prompts predicts.
    """
    probes = StreamedProbes(rows, seed)

    def passed(tokens: Sequence[Token], see) -> None:
        pairs = [(token.prompt, token.place) for token in tokens]
        over_tokens(model, prompts, pairs, see, pad_id, rows=rows, token_budget=token_budget)

    passed(training, lambda taken: probes.standardise(taken.states))
    order = random.Random(seed)
    for _ in range(epochs):
        for chunk in _chunks(training, order):

            def learn(taken: Taken, chunk: Sequence[Token] = chunk) -> None:
                probes.learn(taken.states, [chunk[item].label for item in taken.items])

            passed(chunk, learn)
    right = {row: np.zeros(len(tested), dtype=bool) for row in rows}

    def judge(taken: Taken) -> None:
        labels = np.array([tested[item].label for item in taken.items])
        for row, named in probes.predict(taken.states).items():
            right[row][taken.items] = named == labels

    passed(tested, judge)
    return right


def direction(states: np.ndarray, labels: Sequence[int], *, strength: float = 1.0) -> np.ndarray:
    """The weights w [hidden] of a logistic regression without intercept: h·w > 0 is label 1.

    states: [texts, hidden]. For the fit each component is divided by its root mean square over the texts, and w is in
    the units of the states themselves; means are not taken off, because that would be an intercept. strength: C, the
    inverse of the L2 penalty on the weights of the scaled components.
    """
    wide = np.asarray(states, dtype=np.float64)
    scale = np.sqrt(np.square(wide).mean(axis=0))
    scale[scale == 0] = 1.0
    probe = LogisticRegression(C=strength, fit_intercept=False, tol=1e-6, max_iter=5000)
    probe.fit(wide / scale, np.asarray(labels))
    return probe.coef_[0] / scale


def _chunks(tokens: Sequence[Token], order: random.Random) -> list[list[Token]]:
    """The tokens of `CHUNK` prompts at a time, prompts in random order."""
    of_prompt: dict[int, list[Token]] = {}
    for token in tokens:
        of_prompt.setdefault(token.prompt, []).append(token)
    numbers = list(of_prompt)
    order.shuffle(numbers)
    return [
        [token for number in numbers[start : start + CHUNK] for token in of_prompt[number]]
        for start in range(0, len(numbers), CHUNK)
    ]
