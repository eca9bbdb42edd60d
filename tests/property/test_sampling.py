"""The quick draw is the plain one: sort all tokens, normalise, add the noise, take the best."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peer.sampling import Floats, Logits, choose, gumbel, kept_tokens, sample, uniform_noise
from routing.domain import SamplingParams


def plain_draw(logits: Logits, params: SamplingParams, uniform: Floats) -> int:
    """By the definition, with nothing left out."""
    scaled = logits.astype(np.float64) / params.temperature
    if 0 < params.top_k < len(scaled):
        limit = np.partition(scaled, -params.top_k)[-params.top_k]
        tokens = np.flatnonzero(scaled >= limit)
    else:
        tokens = np.arange(len(scaled))
    tokens = tokens[np.argsort(-scaled[tokens], kind="stable")]
    if params.top_k:
        tokens = tokens[: params.top_k]
    log_probs = normalised(scaled[tokens])
    if params.top_p < 1.0:
        before = np.cumsum(np.exp(log_probs)) - np.exp(log_probs)
        num_kept = max(1, int(np.count_nonzero(before < params.top_p)))
        tokens, log_probs = tokens[:num_kept], normalised(log_probs[:num_kept])
    return int(tokens[(log_probs + gumbel(uniform)[tokens]).argmax()])


def normalised(scaled: Floats) -> Floats:
    shifted = scaled - scaled[0]
    result: Floats = shifted - np.log(np.exp(shifted).sum())
    return result


temperatures = st.one_of(st.sampled_from([1e-5, 1e-3, 0.7, 1.0, 100.0]), st.floats(1e-5, 100.0))
top_ps = st.one_of(st.just(1.0), st.sampled_from([0.5, 0.25, 0.9, 1e-300, 1 - 2**-53]), st.floats(1e-9, 1.0))
top_ks = st.one_of(st.just(0), st.integers(1, 60), st.integers(1, 4000))


@st.composite
def all_logits(draw: st.DrawFn) -> Logits:
    """Small and large vocabularies; steep, flat and with ties; some tokens forbidden."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))  # noqa: TID251
    num_tokens = draw(st.one_of(st.integers(1, 40), st.integers(1000, 6000)))
    spread = draw(st.sampled_from([0.0, 1e-4, 0.1, 1.0, 3.0, 30.0, 1e30]))
    values = rng.standard_normal(num_tokens) * spread
    if draw(st.booleans()):  # ties, as half precision makes them
        values = np.round(values, draw(st.integers(-1, 1)))
    values[rng.random(num_tokens) < draw(st.sampled_from([0.0, 0.0, 0.5, 0.99]))] = -np.inf
    values[draw(st.integers(0, num_tokens - 1))] = draw(st.sampled_from([-1.0, 0.0, 3.0]))
    return values.astype(np.float32)


@given(all_logits(), temperatures, top_ks, top_ps, st.integers(0, 2**63 - 1), st.integers(0, 10_000))
@settings(max_examples=600)
def test_the_same_token_is_drawn(
    logits: Logits, temperature: float, top_k: int, top_p: float, seed: int, position: int
) -> None:
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
    expected = plain_draw(logits, params, uniform_noise(seed, position, len(logits)))
    assert sample(logits, params, position) == expected


@given(all_logits(), temperatures, top_ks, top_ps, st.sampled_from([0.0, 0.3, 1 - 2**-53]), st.integers(0, 5))
@settings(max_examples=300)
def test_noise_that_ties_changes_nothing(
    logits: Logits, temperature: float, top_k: int, top_p: float, value: float, step: int
) -> None:
    """With one noise for all, equal logits have equal keys; every ``step`` tokens another one."""
    uniform = np.full(len(logits), value)
    if step:
        uniform[::step] = 0.7
    elif value == 0.0:
        return  # no token could be drawn at all
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p)
    assert choose(logits, params, uniform) == plain_draw(logits, params, uniform)


@pytest.mark.parametrize("spread", [0.0, 1e-6, 0.5, 1.0])
@pytest.mark.parametrize("top_p", [0.5, 0.9, 0.999])
def test_a_flat_distribution_keeps_very_many(spread: float, top_p: float) -> None:
    logits = (np.random.default_rng(3).standard_normal(20_000) * spread).astype(np.float32)  # noqa: TID251
    params = SamplingParams(temperature=1.0, top_p=top_p, seed=9)
    assert len(kept_tokens(logits, params)[0]) > 1024
    for position in range(5):
        expected = plain_draw(logits, params, uniform_noise(9, position, len(logits)))
        assert sample(logits, params, position) == expected


def test_rounding_does_not_move_the_edge_of_top_p() -> None:
    """Equal tokens whose mass before some token is top-p itself; all the noise is on that token, or the next."""
    for num_tokens in range(2, 40):
        for edge in range(1, num_tokens):
            for loud in (edge - 1, edge):
                uniform = np.full(num_tokens, 0.3)
                uniform[loud] = 0.9
                logits = np.full(num_tokens, 0.7, np.float32)
                params = SamplingParams(temperature=0.9, top_p=edge / num_tokens)
                assert choose(logits, params, uniform) == plain_draw(logits, params, uniform)


def test_rounding_does_not_decide_between_equal_keys() -> None:
    """Two tokens, the noise of the less likely one just makes up for it."""
    rng = np.random.default_rng(4)  # noqa: TID251
    for _ in range(300):
        logits = rng.random(8).astype(np.float32)
        uniform = np.full(8, 0.01)
        first, second = rng.permutation(8)[:2]
        noise = rng.uniform(1, 2)
        for token, own in ((first, noise), (second, noise + float(logits[first]) - float(logits[second]))):
            uniform[token] = np.exp(-np.exp(-own))
        params = SamplingParams(temperature=1.0)
        assert choose(logits, params, uniform) == plain_draw(logits, params, uniform)


@pytest.mark.parametrize("temperature", [5e-324, 1e-308, 1e-6, 0.0])
def test_a_temperature_next_to_nothing_is_greedy(temperature: float) -> None:
    logits = np.array([1.0, 3.0, 2.0, 3.0], np.float32)
    for position in range(20):
        assert sample(logits, SamplingParams(temperature=temperature, top_p=0.9, top_k=3), position) == 1
