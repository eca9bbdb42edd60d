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


def gumbel_noise(seed: int, position: int, vocab_size: int) -> NDArray[np.float64]:
    """Standard Gumbel noise for every token at one position of a session: float64 [vocab]."""
    uniform = np.random.Generator(np.random.Philox(key=(seed, position))).random(vocab_size)
    with np.errstate(divide="ignore"):  # a draw of exactly 0 is -inf: that token is not taken
        return -np.log(-np.log(uniform))


def kept_tokens(logits: Logits, params: SamplingParams) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The tokens that temperature, top-k and top-p leave, likeliest first, with their log-probabilities.

    Top-p comes after top-k and counts the probabilities that top-k has left, renormalised. Among equals the lower
    token id comes first.

    Args:
        logits: float32 [vocab].
        params: with a temperature above 0.

    Returns:
        int64 [kept] token ids and float64 [kept] log-probabilities that sum to 1 after exp.
    """
    scaled = logits.astype(np.float64) / params.temperature
    if 0 < params.top_k < len(scaled):
        limit = np.partition(scaled, -params.top_k)[-params.top_k]
        tokens = np.flatnonzero(scaled >= limit)
    else:
        tokens = np.arange(len(scaled))
    tokens = tokens[np.argsort(-scaled[tokens], kind="stable")]
    if params.top_k:
        tokens = tokens[: params.top_k]
    log_probs = _normalised(scaled[tokens])
    if params.top_p < 1.0:
        before = np.cumsum(np.exp(log_probs)) - np.exp(log_probs)
        num_kept = max(1, int(np.count_nonzero(before < params.top_p)))
        tokens, log_probs = tokens[:num_kept], _normalised(log_probs[:num_kept])
    return tokens, log_probs


def sample(logits: Logits, params: SamplingParams, position: int) -> int:
    """The token at ``position`` of a session's text.

    Raises:
        ValueError: the logits hold a NaN or no finite number: the computation before went wrong.
    """
    if not np.isfinite(logits.max(initial=-np.inf)):
        raise ValueError("the logits are not finite")
    if params.temperature == 0.0:
        return int(logits.argmax())
    tokens, log_probs = kept_tokens(logits, params)
    noise = gumbel_noise(params.seed, position, len(logits))
    return int(tokens[(log_probs + noise[tokens]).argmax()])


def _normalised(scaled: NDArray[np.float64]) -> NDArray[np.float64]:
    """Log-softmax of numbers in falling order."""
    shifted = scaled - scaled[0]
    normalised: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum())
    return normalised
