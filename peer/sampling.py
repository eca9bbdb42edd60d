"""How a token is drawn from logits: the same draw at every place that knows the session's seed.

The noise is keyed by (seed, position), not drawn in sequence, so a token depends on the text before it alone: not on
how many rounds the text took, on what was drafted, or on which peer drew. numpy only: clients draw the same bits.

Source: the Gumbel-max coupling of speculative decoding, arXiv 2408.07978.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from routing.domain import SamplingParams

Logits = NDArray[np.float32]
"""[vocab]: the target's unnormalised log-probabilities of the next token."""

Floats = NDArray[np.float64]
Tokens = NDArray[np.int64]

GREEDY_BELOW = 1e-5
"""A lower temperature than this takes the likeliest token: dividing by it would lose the differences of logits."""

FEW = 1024
"""So many tokens are sorted without a thought."""

_SAME_KEY = 1e-12  # rounding moves a token's key by less, in part of the key's size
_SAME_MASS = 1e-10  # and the probability of the tokens before it by less


def uniform_noise(seed: int, position: int, vocab_size: int) -> Floats:
    """What the noise of every token at one position of a session is made of: float64 [vocab] from [0, 1)."""
    return np.random.Generator(np.random.Philox(key=(seed, position))).random(vocab_size)


def gumbel(uniform: Floats) -> Floats:
    """Standard Gumbel noise, in the shape of ``uniform``."""
    with np.errstate(divide="ignore"):  # a draw of exactly 0 is -inf: that token is not taken
        return -np.log(-np.log(uniform))


def sample(logits: Logits, params: SamplingParams, position: int) -> int:
    """The token at ``position`` of a session's text.

    Raises:
        ValueError: the logits hold a NaN or no finite number: the computation before went wrong.
    """
    if not np.isfinite(logits.max(initial=-np.inf)):
        raise ValueError("the logits are not finite")
    if params.temperature < GREEDY_BELOW:
        return int(logits.argmax())
    return choose(logits, params, uniform_noise(params.seed, position, len(logits)))


def choose(logits: Logits, params: SamplingParams, uniform: Floats) -> int:
    """The kept token whose log-probability plus noise is highest; among equals the likelier, then the lower id.

    ``kept_tokens`` says which are kept, and sorts all of them for it. But a token's rank and the mass before it can be
    counted for this one token; the logits need not be normalised; and few tokens can win at all. Only rounding is
    different then: where it could decide, the draw is made by ``kept_tokens``.

    Args:
        logits: float32 [vocab], at least one of them finite, none NaN or inf.
        params: with a temperature of at least ``GREEDY_BELOW``.
        uniform: float64 [vocab], see ``uniform_noise``.
    """
    if 0 < params.top_k <= FEW:
        return _choose_by_definition(logits, params, uniform)
    highest = _scaled(logits.max(), params)
    kept = _Kept(logits, params)
    tokens = _contenders(logits, params.temperature, uniform, kept)
    keys = _scaled(logits[tokens], params) - highest + gumbel(uniform[tokens])
    while len(tokens):
        best = int(keys.argmax())
        token = int(tokens[best])
        is_kept = kept.has(token)
        if is_kept is None:
            break
        if is_kept:
            if np.count_nonzero(keys >= keys[best] - _SAME_KEY * (1 + abs(keys[best]))) > 1:
                break
            return token
        likelier = (logits[tokens] > logits[token]) | ((logits[tokens] == logits[token]) & (tokens < token))
        tokens, keys = tokens[likelier], keys[likelier]  # the others are not kept either
    return _choose_by_definition(logits, params, uniform)


def _choose_by_definition(logits: Logits, params: SamplingParams, uniform: Floats) -> int:
    tokens, log_probs = kept_tokens(logits, params)
    return int(tokens[(log_probs + gumbel(uniform[tokens])).argmax()])


def kept_tokens(logits: Logits, params: SamplingParams) -> tuple[Tokens, Floats]:
    """The tokens that temperature, top-k and top-p leave, likeliest first, with their log-probabilities.

    Top-p comes after top-k and counts the probabilities that top-k has left, renormalised. Among equals the lower
    token id comes first.

    Args:
        logits: float32 [vocab].
        params: with a temperature of at least ``GREEDY_BELOW``.

    Returns:
        int64 [kept] token ids and float64 [kept] log-probabilities that sum to 1 after exp.
    """
    tokens = _likeliest(logits, params.top_k or len(logits))
    log_probs = _normalised(_scaled(logits[tokens], params))
    if params.top_p < 1.0:
        before = np.cumsum(np.exp(log_probs)) - np.exp(log_probs)
        num_kept = max(1, int(np.count_nonzero(before < params.top_p)))
        tokens, log_probs = tokens[:num_kept], _normalised(log_probs[:num_kept])
    return tokens, log_probs


def _likeliest(logits: Logits, count: int) -> Tokens:
    """The ids of so many tokens, the likeliest first; among equals the lower id."""
    if count < len(logits):
        limit = np.partition(logits, -count)[-count]
        tokens = np.flatnonzero(logits >= limit)
    else:
        tokens = np.arange(len(logits))
    return tokens[np.argsort(-logits[tokens], kind="stable")][:count]


def _contenders(logits: Logits, temperature: float, uniform: Floats, kept: _Kept) -> Tokens:
    """The tokens that could win against the likeliest one, which is always kept, and against the one of most noise."""
    top, loudest = int(logits.argmax()), int(uniform.argmax())
    best = float(logits[top])
    lead, most = gumbel(uniform[[top, loudest]])
    other = (float(logits[loudest]) - best) / temperature + most
    if other > lead and kept.has(loudest):
        lead = other
    lead -= 1e-6 * (1 + abs(lead)) + 1e-9 * abs(best) / temperature  # far above all rounding
    with np.errstate(over="ignore"):
        least_uniform = np.exp(-np.exp(-lead)) - 1e-9  # the noise that a token needs, if it is as likely as the top
    least_logit = np.float64(best + temperature * (lead - most))  # what it needs with the highest noise
    return np.flatnonzero((logits >= least_logit) & (uniform >= least_uniform))


class _Kept:
    """Which tokens top-k and top-p leave."""

    def __init__(self, logits: Logits, params: SamplingParams) -> None:
        self._logits = logits
        self._top_k = params.top_k or len(logits)
        self._top_p = params.top_p
        if params.top_p < 1.0:
            weights = _scaled(logits, params)
            weights -= weights.max()
            self._weights = np.exp(weights, out=weights)  # [vocab], not normalised
            self._mass = weights.sum()
            if self._top_k < len(weights):
                limit = np.partition(weights, -self._top_k)[-self._top_k]
                above = weights[weights > limit]
                self._mass = above.sum() + (self._top_k - len(above)) * limit

    def has(self, token: int) -> bool | None:
        """Is it kept? None if rounding could decide."""
        if self._top_k >= len(self._logits) and self._top_p == 1.0:
            return True
        likelier = self._logits > self._logits[token]
        num_equal = np.count_nonzero(self._logits[:token] == self._logits[token])
        rank = np.count_nonzero(likelier) + num_equal
        if rank == 0 or rank >= self._top_k or self._top_p == 1.0:
            return bool(rank < self._top_k)
        before = (self._weights[likelier].sum() + num_equal * self._weights[token]) / self._mass
        return None if abs(before - self._top_p) < _SAME_MASS else bool(before < self._top_p)


def _scaled(logits: Logits | np.float32, params: SamplingParams) -> Floats:
    scaled: Floats = np.asarray(logits, np.float64) / params.temperature
    return scaled


def _normalised(scaled: Floats) -> Floats:
    """Log-softmax of numbers in falling order."""
    shifted = scaled - scaled[0]
    normalised: Floats = shifted - np.log(np.exp(shifted).sum())
    return normalised
