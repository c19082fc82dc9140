"""Probes: what is planted is found, what is not there is not, and others find the same."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegression

from bulwark.interpretability.probes import StreamedProbes, direction


def planted(apart: float, count: int = 1200, hidden: int = 24, seed: int = 0):
    """States of two labels whose means differ by `apart` deviations along one direction, on scales of all sizes."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, count)
    along = np.random.default_rng(99).normal(size=hidden)
    states = rng.normal(size=(count, hidden)) + apart * np.outer(labels - 0.5, along / np.linalg.norm(along))
    return states * np.logspace(-2, 2, hidden) + np.linspace(-5, 50, hidden), labels


def streamed(states, labels, batch=100, epochs=5):
    probes = StreamedProbes([3], seed=0)
    parts = [(torch.tensor(states[i : i + batch]), labels[i : i + batch]) for i in range(0, len(states), batch)]
    for part, _ in parts:
        probes.standardise({3: part})
    for _ in range(epochs):
        for part, names in parts:
            probes.learn({3: part}, names)
    return probes


def accuracy(probes, states, labels):
    return float((probes.predict({3: torch.tensor(states)})[3] == labels).mean())


@pytest.mark.parametrize(("apart", "low", "high"), [(12.0, 1.0, 1.0), (0.0, 0.45, 0.55)])
def test_what_is_planted_is_found_and_what_is_not_is_not(apart, low, high):
    probes = streamed(*planted(apart))
    assert low <= accuracy(probes, *planted(apart, seed=1)) <= high


def test_a_streamed_probe_is_as_good_as_one_that_sees_all_at_once():
    states, labels = planted(2.0, count=3000)
    tried = planted(2.0, count=3000, seed=1)
    mean, deviation = states.mean(0), states.std(0)
    other = LogisticRegression().fit((states - mean) / deviation, labels)
    best = float(other.score((tried[0] - mean) / deviation, tried[1]))
    assert 0.8 < best < 0.88  # Φ(1) is 0.84: the optimum
    assert accuracy(streamed(states, labels), *tried) > best - 0.03


def test_it_is_standardised_by_what_was_streamed():
    states, labels = planted(1.0)
    scaler = streamed(states, labels)._scalers[3]
    np.testing.assert_allclose(scaler.mean_, states.mean(0), rtol=1e-9)
    np.testing.assert_allclose(scaler.scale_, states.std(0), rtol=1e-9)


@pytest.mark.parametrize("strength", [0.1, 1.0])
def test_the_concept_is_the_minimum_of_the_penalised_loss_without_intercept(strength):
    states, labels = planted(1.5, count=400, hidden=6)
    found = direction(states, labels, strength=strength)
    size = np.sqrt((states**2).mean(0))
    scaled, signs = states / size, 2 * labels - 1

    def loss(w):
        return strength * np.logaddexp(0, -signs * (scaled @ w)).sum() + w @ w / 2

    other = minimize(loss, np.zeros(6), method="BFGS", options={"gtol": 1e-6, "maxiter": 5000})
    assert loss(found * size) == pytest.approx(other.fun, rel=1e-6)
    np.testing.assert_allclose(found * size, other.x, rtol=1e-2, atol=1e-2 * np.abs(other.x).max())


def test_a_component_that_is_always_zero_has_no_part_in_the_concept():
    states, labels = planted(4.0, count=100, hidden=4)
    states[:, 2] = 0.0
    assert direction(states, labels)[2] == 0.0
