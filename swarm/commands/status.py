"""``swarm status``: who serves what."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from routing.domain import ModelId, PeerState, Span, short
from routing.planner import step_seconds
from swarm.commands.connecting import connect
from swarm.commands.running import find_model, require_peers, say
from swarm.view import Seen


async def status(
    model: str, *, initial_peers: list[str], is_json: bool, cache_dir: Path | None, delay_ms: float
) -> int:
    """Write a table, or JSON; the exit status is 1 when blocks are missing."""
    require_peers(initial_peers)
    folder = find_model(model, cache_dir)
    async with await connect(folder, initial_peers, delay_ms) as client:
        variant = await client.view.variant()
        rows = await asyncio.gather(*map(client.view.ask, variant.records)) if variant is not None else []
        others = sorted(map(str, await client.models())) if variant is None else []
    if variant is None:
        hint = f"it serves {', '.join(others)}" if others else "start a peer with `swarm serve MODEL`"
        say(f"swarm: no peer of this swarm serves {folder.name}; {hint}")
        if is_json:
            print(json.dumps({"model": folder.name, "num_blocks": None, "missing": None, "peers": []}))
        return 1
    identity, whole = variant.model, Span(0, variant.records[0].num_blocks)
    missing = whole.missing(row.record.span for row in rows if row.state == PeerState.ONLINE)
    if is_json:
        print(json.dumps(_as_json(identity, whole, missing, rows), indent=2))
    else:
        _write_table(identity, whole, rows)
    if missing:
        blocks = ", ".join(map(str, missing))
        say(f"swarm: nobody serves the blocks {blocks}: start a peer with `swarm serve MODEL --blocks {missing[0]}`")
    return 1 if missing else 0


def _as_json(model: ModelId, whole: Span, missing: tuple[Span, ...], rows: Sequence[Seen]) -> dict[str, object]:
    return {
        "model": str(model),
        "num_blocks": whole.end,
        "missing": list(map(str, missing)),
        "peers": [
            {
                "peer": row.record.peer,
                "name": row.record.name,
                "blocks": str(row.record.span),
                "state": row.state,
                "rtt_ms": None if row.rtt_seconds is None else round(row.rtt_seconds * 1000, 2),
                "step_ms": round(step_seconds(row.record, 1) * 1000, 2),
                "num_free_kv_tokens": (row.pong or row.record).num_free_kv_tokens,
                "queue": (row.pong or row.record).queue,
                "num_sessions": None if row.pong is None else row.pong.num_sessions,
                "num_wire_errors": None if row.pong is None else row.pong.num_wire_errors,
                "weights": row.record.weights_class,
                "version": row.record.software,
                "addresses": list(row.record.addresses),
            }
            for row in rows
        ],
    }


def _write_table(model: ModelId, whole: Span, rows: Sequence[Seen]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{model}, {whole.end} blocks", box=SIMPLE_HEAD, title_justify="left")
    for column in ("blocks", "peer", "name", "state", "RTT", "t(1)", "free KV", "weights", "version"):
        table.add_column(column, no_wrap=True)
    for row in rows:
        table.add_row(
            str(row.record.span),
            short(row.record.peer),
            row.record.name or "-",
            row.state,
            "-" if row.rtt_seconds is None else f"{row.rtt_seconds * 1000:.0f} ms",
            f"{step_seconds(row.record, 1) * 1000:.0f} ms",
            str((row.pong or row.record).num_free_kv_tokens),
            row.record.weights_class,
            row.record.software,
        )
    Console(file=sys.stdout, width=None if sys.stdout.isatty() else 160, highlight=False).print(table)
