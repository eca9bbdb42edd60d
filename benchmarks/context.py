"""What a long text costs: one row against 128 to 7,000 tokens of context, and the steps on the way there.

    python benchmarks/context.py --json context.json

Ten blocks of the embedded model from the middle, one thread, float32 or what --dtype says. Milliseconds of a pass of
one row, the median at each context. Then how the cache grows to 7,000 slots one by one: the largest step of all and the
median one, of making room and writing keys and values of ten blocks.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from timeit import timeit

import numpy as np
import torch

from peer.engines.rows import to_wire
from peer.engines.torch_engine import TorchEngine
from peer.formats import ELEMENT_BYTES
from peer.plan import PassPart, PassPlan
from peer.spans import SpanModel
from routing.domain import SamplingParams, Span
from swarm.models import EMBEDDED, resolve

SPAN = Span(10, 20)
CONTEXTS = (128, 1024, 4096, 7000)
CHUNK = 128
ROUNDS = 30


def plan(model: SpanModel, num_before: int, num_rows: int) -> PassPlan:
    """A chain of so many random rows behind ``num_before`` tokens."""
    positions = np.arange(num_before, num_before + num_rows)
    part = PassPart(
        cache=1,
        max_tokens=CONTEXTS[-1] + ROUNDS,
        params=SamplingParams(),
        first=num_before,
        moves=positions[:0],
        num_committed=num_before,
        ids=positions + 1,
        parents=positions,
        tokens=positions * 0,
        open_positions=positions,
        rows=to_wire(torch.randn(num_rows, model.hidden_size, dtype=model.dtype)),
    )
    return PassPlan(SPAN, (part,))


def rounds(model: SpanModel) -> list[dict[str, float]]:
    """A round of one row at each context."""
    engine = TorchEngine(model)
    results: list[dict[str, float]] = []
    done = 0
    for context in CONTEXTS:
        while done < context:
            num_rows = min(CHUNK, context - done)
            engine.run(plan(model, done, num_rows))
            done += num_rows
        one_row = plan(model, done, 1)
        times = [timeit(lambda one_row=one_row: engine.run(one_row), number=1) for _ in range(ROUNDS)]  # type: ignore[misc]
        results.append({"context": context, "round_ms": round(1000 * statistics.median(times), 2)})
        print(results[-1])
    return results


def growth(model: SpanModel) -> dict[str, float]:
    """The steps of a cache that grows one slot at a time."""
    cache = model.new_cache(CONTEXTS[-1])
    shape = cache.keys(0).shape
    new = torch.ones(shape[0], 1, shape[2], dtype=cache.dtype)

    def step() -> None:
        cache.reserve(1)
        for layer in range(len(SPAN)):
            cache.write(layer, new, new)

    times = sorted(timeit(step, number=1) for _ in range(CONTEXTS[-1]))
    result = {"largest_step_ms": round(1000 * times[-1], 2), "median_step_ms": round(1000 * times[len(times) // 2], 3)}
    print(result)
    return result


def main(dtype: str, json_file: Path | None) -> None:
    """Measure, print and write."""
    torch.set_num_threads(1)
    model = SpanModel(resolve(EMBEDDED, None, print).path, SPAN, dtype)
    results = {"dtype": dtype, "rounds": rounds(model), "growth": growth(model)}
    if json_file is not None:
        json_file.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", choices=ELEMENT_BYTES, default="float32")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    main(arguments.dtype, arguments.json)
