"""What a round costs: three peers of the embedded model on this machine, waves of 1 to 32 rows, no delay on the links.

    python benchmarks/round.py --json round.json

For each size: milliseconds of a round at the client, of them computing at the three hops, waiting for a pass, and the
rest, which is the network and our own overhead. Medians over the rounds of one answer.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from routing.domain import Span
from swarm.client import SwarmClient
from swarm.drafting import PENDING, Draft, DraftNode
from swarm.local_swarm import LocalSwarm, PeerPlan, stop_fork_server
from swarm.models import EMBEDDED, ModelName, resolve
from swarm.speculation import Speculation
from swarm.tokenizer import Tokenizer

ROWS = (1, 2, 4, 8, 16, 32)
NUM_TOKENS = 40
WARM_UP = 5


class Hopeless:
    """Drafts a chain that is never right: every round has the same number of rows."""

    def extend(self, tokens: Sequence[int]) -> None:
        """Nothing to remember."""

    def propose(self, max_nodes: int, max_depth: int) -> Draft:
        """A chain of one token."""
        del max_depth
        return [DraftNode(index - 1 if index else PENDING, 5, 0.5) for index in range(max_nodes)]

    def learn(self, draft: Draft, tokens: Sequence[int]) -> None:
        """Nothing to learn."""


async def measure(client: SwarmClient, prompt: list[int], num_rows: int) -> dict[str, float]:
    """Medians over the rounds of one answer, in milliseconds."""
    clock = asyncio.get_running_loop().time
    rounds: list[float] = []
    computing: list[float] = []
    waiting: list[float] = []
    async with await client.open(600, speculation=Speculation(num_rows - 1), proposer=Hopeless()) as conversation:
        before = clock()
        async for _ in conversation.ask(prompt, NUM_TOKENS):
            rounds.append(clock() - before)
            before = clock()
            computing.append(sum(timing.compute_seconds for timing in conversation.timings))
            waiting.append(sum(timing.queue_seconds for timing in conversation.timings))
    whole, compute, queue = (
        1000 * statistics.median(values[WARM_UP:-WARM_UP]) for values in (rounds, computing, waiting)
    )
    return {
        "rows": num_rows,
        "round_ms": round(whole, 2),
        "compute_ms": round(compute, 2),
        "queue_ms": round(queue, 2),
        "rest_ms": round(whole - compute - queue, 2),
    }


async def main(json_file: Path | None) -> None:
    """Start the swarm, measure each size, print and write."""
    folder = resolve(EMBEDDED, None, print)
    cuts = (0, 10, 20, 30)
    plans = [PeerPlan(folder.path, folder.name, Span(start, end)) for start, end in pairwise(cuts)]
    prompt = Tokenizer.load(folder.path).encode("The river runs through the old town and")
    results: list[dict[str, float]] = []
    try:
        async with (
            LocalSwarm(plans, print) as local,
            await SwarmClient.connect(ModelName.of(folder.name, folder.path), local.initial_peers) as client,
        ):
            for num_rows in ROWS:
                results.append(await measure(client, prompt, num_rows))
                print(results[-1])
    finally:
        stop_fork_server()
    if json_file is not None:
        json_file.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    asyncio.run(main(parser.parse_args().json))
