"""``swarm serve``: join a swarm as a serving peer."""

from __future__ import annotations

from pathlib import Path

from peer.capacity import check_fits, free_bytes, parse_bytes
from peer.checkpoint import Checkpoint
from peer.formats import ELEMENT_BYTES
from routing.addresses import check_announce, check_listen, check_peer, is_loopback
from routing.domain import Span
from routing.errors import ConfigError
from routing.identity import Identity
from swarm.commands.running import find_model, say, wait_for_signal
from swarm.models import EMBEDDED


async def serve(
    model: str,
    *,
    blocks: str | None,
    max_memory: str | None,
    initial_peers: list[str],
    listen: list[str],
    announce: list[str],
    identity_file: Path | None,
    device: str,
    dtype: str,
    cache_dir: Path | None,
    name: str,
    delay_ms: float,
) -> None:
    """Serve blocks until Ctrl-C."""
    span = _read_blocks(blocks)
    peers = tuple(map(check_peer, initial_peers))
    listen_at, announce_at = tuple(map(check_listen, listen)), tuple(map(check_announce, announce))
    if dtype not in ELEMENT_BYTES:
        raise ConfigError(f"--dtype {dtype}: give one of {', '.join(ELEMENT_BYTES)}")
    max_bytes = None if max_memory is None else parse_bytes(max_memory)
    if len(name) > 64 or not name.isprintable():
        raise ConfigError("--name: give at most 64 printable characters")
    folder = find_model(model, cache_dir)
    if max_bytes is not None or device == "cpu":
        limit = max_bytes if max_bytes is not None else free_bytes(device) // 2
        check_fits(Checkpoint.open(folder.path), span, limit, ELEMENT_BYTES[dtype])
    say("loading torch and libp2p")
    from peer.node import PeerSettings, ServingPeer

    settings = PeerSettings(
        folder=folder.path,
        model_name=folder.name,
        identity=Identity.generate() if identity_file is None else Identity.load_or_create(identity_file),
        span=span,
        max_memory_bytes=max_bytes,
        dtype=dtype,
        device=device,
        listen=listen_at,
        announce=announce_at,
        initial_peers=peers,
        name=name,
        delay_seconds=delay_ms / 1000,
    )
    async with await ServingPeer.start(settings, say) as node:
        say(f"serving the blocks {node.span} of {node.model}" + ("" if peers else ": a new swarm of its own"))
        addresses = node.p2p.join_addresses
        reachable = [address for address in addresses if not is_loopback(address)]
        say("another machine joins this swarm with" if reachable else "only this machine can join this swarm, with")
        options = " ".join(f"--initial-peers {address}" for address in reachable or addresses)
        print(f"swarm serve {model if model == EMBEDDED else 'MODEL'} {options}", flush=True)
        await wait_for_signal(node.wait())
        say("leaving")
    say("left the swarm")


def _read_blocks(text: str | None) -> Span | None:
    try:
        return None if text is None else Span.parse(text)
    except ValueError as error:
        raise ConfigError(f"--blocks: {error}") from None
