"""The bounds of the wire, and the types that fields of messages have."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

MAX_MESSAGE_BYTES = 32 << 20
MAX_NODES_PER_WAVE = 1024
MAX_VERIFIED_NODES = 160
"""Nodes of a wave from its start on: they can't be cut into parts."""
MAX_OPEN_NODES = 2048
"""Nodes of a session that are not committed, in all waves together."""
MAX_WAVES_OUTSTANDING = 4
MAX_HOPS = 64
MAX_ADDRESSES = 8
MAX_AUTH_BYTES = 512

SessionBytes = Annotated[bytes, Meta(min_length=16, max_length=16)]
Count = Annotated[int, Meta(ge=0, lt=2**53)]
Seconds = Annotated[float, Meta(ge=0)]
Text = Annotated[str, Meta(max_length=2000)]
Name = Annotated[str, Meta(max_length=200)]
Auth = Annotated[bytes, Meta(max_length=MAX_AUTH_BYTES)]
Bits = Annotated[bytes, Meta(max_length=MAX_NODES_PER_WAVE // 8)]
"""One bit for each node of a wave, in order, the lowest bit of a byte first; empty for all of them."""
Addresses = Annotated[tuple[Name, ...], Meta(max_length=MAX_ADDRESSES)]
