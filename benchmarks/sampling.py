"""What a draw costs: the noise alone, then draws with top-p 1, top-p .9 and top-k 50, beside a draw that sorts all.

    python benchmarks/sampling.py --json sampling.json

Milliseconds, medians; ``times_noise`` is a draw in units of the noise of the whole vocabulary, ``before`` the draw that
sorts every token. Two kinds of logits: a few likely tokens above a broad rest, as models give them, and a flat rest.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from timeit import timeit

import numpy as np

from peer.sampling import Logits, gumbel, kept_tokens, sample, uniform_noise
from routing.domain import SamplingParams

VOCABULARIES = (49_152, 152_064)
DRAWS = {
    "top-p 1": SamplingParams(temperature=0.8, seed=1),
    "top-p .9": SamplingParams(temperature=0.8, seed=1, top_p=0.9),
    "top-k 50": SamplingParams(temperature=0.8, seed=1, top_k=50),
}
REPEATS = 40


def logits_of(vocab_size: int, kind: str) -> Logits:
    """Random logits, the same in every run."""
    rng = np.random.default_rng(0)  # noqa: TID251
    logits = rng.standard_normal(vocab_size) * (2.5 if kind == "model" else 0.5)
    if kind == "model":
        logits[rng.integers(0, vocab_size, 200)] += rng.exponential(4, 200)
        logits[rng.integers(0, vocab_size, 5)] += 12
    return logits.astype(np.float32)


def sorted_draw(logits: Logits, params: SamplingParams, position: int) -> int:
    """The draw by its definition."""
    tokens, log_probs = kept_tokens(logits, params)
    noise = gumbel(uniform_noise(params.seed, position, len(logits)))
    return int(tokens[(log_probs + noise[tokens]).argmax()])


def milliseconds(call: Callable[[], object], repeats: int) -> float:
    """The median of so many calls, after two to warm up."""
    times = [timeit(call, number=1) for _ in range(repeats + 2)]
    return round(1000 * statistics.median(times[2:]), 3)


def measure(vocab_size: int, kind: str) -> dict[str, object]:
    """One size and kind."""
    logits = logits_of(vocab_size, kind)
    noise = milliseconds(lambda: gumbel(uniform_noise(1, 5, vocab_size)), REPEATS)
    result: dict[str, object] = {"vocabulary": vocab_size, "logits": kind, "noise_ms": noise}
    for name, params in DRAWS.items():
        now = milliseconds(lambda params=params: sample(logits, params, 5), REPEATS)  # type: ignore[misc]
        before = milliseconds(lambda params=params: sorted_draw(logits, params, 5), REPEATS // 4)  # type: ignore[misc]
        result[name] = {"ms": now, "times_noise": round(now / noise, 2), "before_ms": before}
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    file = parser.parse_args().json
    results = [measure(size, kind) for size in VOCABULARIES for kind in ("model", "flat")]
    for line in results:
        print(line)
    if file is not None:
        file.write_text(json.dumps(results, indent=2) + "\n")
