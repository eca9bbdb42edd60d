"""What planning costs: from the records that were found to a route, without the network.

    python benchmarks/planning.py --json planning.json

For each swarm: its records, the peers that a client would ask, the hops of the route, and milliseconds of choosing the
variant, choosing whom to ask, and planning: medians of several runs. The first run is left out of them and given as
`first_ms`, as it parses addresses. The records are made up; the strangers serve nothing and answer nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

from routing.choice import Wanted, choose_variant, worth_asking
from routing.domain import ModelId, PeerId, PeerRecord, PeerState, Span
from routing.health import Health
from routing.planner import best_route

NUM_RUNS = 9
MODEL = ModelId("model", "0" * 8, "1" * 8)


def number(text: str, low: int, high: int) -> int:
    """Any number from low to high, both included; always the same for a text."""
    return low + int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") % (high - low + 1)


def record(name: str, span: Span, num_blocks: int, address: str) -> PeerRecord:
    """A peer that takes 10 to 100 ms for all blocks."""
    peer = hashlib.sha256(name.encode()).hexdigest()
    step_seconds = number(f"{name} step", 10, 100) / 1000 * len(span) / num_blocks
    return PeerRecord(
        model=MODEL,
        num_blocks=num_blocks,
        span=span,
        peer=PeerId(peer),
        addresses=(address,),
        state=PeerState.ONLINE,
        weights_class="float32",
        software="0",
        protocol=2,
        name=name,
        num_free_kv_tokens=number(f"{name} room", 0, 10_000),
        queue=number(f"{name} queue", 0, 3),
        step_seconds=((1, step_seconds),),
        features=(),
        sequence=1,
        expiry=0.0,
    )


def honest(count: int, num_blocks: int = 80) -> list[PeerRecord]:
    """Peers all over the world with 32 to 80 of 80 blocks."""
    records: list[PeerRecord] = []
    for index in range(count):
        length = number(f"length {index}", 32, num_blocks)
        start = number(f"start {index}", 0, num_blocks - length)
        address = f"/ip4/{number(f'a {index}', 11, 99)}.{number(f'b {index}', 0, 255)}.1.1/tcp/4001"
        records.append(record(f"honest {index}", Span(start, start + length), num_blocks, address))
    return records


def nested(count: int) -> list[PeerRecord]:
    """Each span lies inside the one before: as many places to take over as there can be."""
    return [
        record(f"nested {index}", Span(index, 2 * count - index), 2 * count, f"/ip4/{index + 11}.1.1.1/tcp/4001")
        for index in range(count)
    ]


def strangers(count: int, *, are_plain: bool) -> list[PeerRecord]:
    """Ten peers that serve 8 blocks each, and many ids that are nowhere: plain ones all say that they serve all."""
    ten = [
        record(f"one of ten {index}", Span(8 * index, 8 * index + 8), 80, f"/ip4/{index + 11}.9.1.1/tcp/4001")
        for index in range(10)
    ]
    others: list[PeerRecord] = []
    for index in range(count):
        start = 0 if are_plain else number(f"from {index}", 0, 72)
        end = 80 if are_plain else number(f"to {index}", start + 8, 80)
        others.append(record(f"stranger {index}", Span(start, end), 80, f"/ip4/88.{index // 8}.1.1/tcp/4001"))
    return ten + others


def latency(here: PeerId | None, there: PeerId | None) -> float:
    """Something from 5 to 60 ms."""
    return number(f"{here} {there}", 5, 60) / 1000


def measure(name: str, records: Sequence[PeerRecord], clock: Callable[[], float]) -> dict[str, object]:
    """Plan a route over these peers, as often as it takes."""
    num_blocks = records[0].num_blocks
    wanted = Wanted(MODEL.name, MODEL.config, num_blocks, 2)
    times: list[tuple[float, float, float]] = []
    links: dict[tuple[PeerId | None, PeerId | None], float] = {}
    num_calls = num_asked = num_hops = 0
    for _ in range(NUM_RUNS + 1):
        health = Health()
        began = clock()
        variant = choose_variant(records, wanted)
        assert variant is not None  # noqa: S101
        chosen = clock()
        asked = worth_asking(variant.records, num_blocks, health, 0.0, 1000)
        picked = clock()
        for here in [*(peer.peer for peer in asked), None]:
            links.update({(here, there): latency(here, there) for there in [*(peer.peer for peer in asked), None]})
        before = clock()
        num_hops = len(best_route(asked, num_blocks, lambda here, there: links[here, there]))
        times.append((chosen - began, picked - chosen, clock() - before))
        num_asked, num_calls = len(asked), calls_to_a_route(variant.records, num_blocks)
    parts = [statistics.median(part) * 1000 for part in zip(*times[1:], strict=True)]
    return {
        "swarm": name,
        "records": len(records),
        "asked": num_asked,
        "calls": num_calls,
        "hops": num_hops,
        "variant_ms": round(parts[0], 2),
        "asking_ms": round(parts[1], 2),
        "route_ms": round(parts[2], 2),
        "total_ms": round(sum(parts), 2),
        "first_ms": round(sum(times[0]) * 1000, 2),
    }


def calls_to_a_route(records: Sequence[PeerRecord], num_blocks: int) -> int:
    """How often a client asks until those who answered serve all blocks; it asks again at once."""
    health, answered, num_calls = Health(), set[Span](), 0
    while Span(0, num_blocks).missing(answered):
        num_calls += 1
        for peer in worth_asking(records, num_blocks, health, 0.0, 1000):
            if peer.name.startswith("stranger"):
                health.failed(peer.peer, 0.0)
            else:
                health.answered(peer.peer, 0.0, 0.05)
                answered.add(peer.span)
    return num_calls


async def main(json_file: Path | None) -> None:
    """Measure each swarm, print and write."""
    clock = asyncio.get_running_loop().time
    swarms = {
        "1,000 honest peers, 32 to 80 of 80 blocks": honest(1000),
        "100 nested spans": nested(100),
        "10 honest peers and 1,000 strangers with all blocks, 8 of a place": strangers(1000, are_plain=True),
        "10 honest peers and 1,000 strangers with any blocks, 8 of a place": strangers(1000, are_plain=False),
    }
    results = [measure(name, records, clock) for name, records in swarms.items()]
    for result in results:
        print(result)
    if json_file is not None:
        json_file.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    asyncio.run(main(parser.parse_args().json))
