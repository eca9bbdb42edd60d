"""``swarm bootstrap``: a meeting place that serves no blocks."""

from __future__ import annotations

import asyncio
from pathlib import Path

from routing.identity import Identity
from swarm.commands.running import say, wait_for_signal


async def bootstrap(
    listen: list[str], announce: list[str], initial_peers: list[str], identity_file: Path | None
) -> None:
    """Keep records for others until Ctrl-C."""
    from routing.p2p.node import P2PNode

    identity = Identity.generate() if identity_file is None else Identity.load_or_create(identity_file)
    node = await P2PNode.create(identity, listen=listen, announce=announce, initial_peers=initial_peers)
    try:
        say("bootstrap: up. Others join with any of")
        for address in node.join_addresses:
            print(f"--initial-peers {address}", flush=True)
        await wait_for_signal(_until_lost(node.wait_lost()))
    finally:
        await asyncio.shield(node.close())
    say("bootstrap: stopped")


async def _until_lost(lost: object) -> None:
    from collections.abc import Awaitable
    from typing import cast

    from routing.errors import SwarmError

    await cast(Awaitable[None], lost)
    raise SwarmError("the libp2p daemon has ended: start the bootstrap again")
