"""Every message that peers and clients say to each other, as data. `PROTOCOL.md` tells who says what when.

A message is a msgpack array that begins with its kind. Fields are only ever added at the end, and a receiver ignores
those that it does not know; anything that changes a meaning changes ``PROTOCOL_VERSION``, and whatever changes a text
is asked for by name in ``Open.needs``. Everything here comes from strangers, so every field has a bound.
"""

from __future__ import annotations

from typing import Annotated, get_args

from msgspec import Meta, Struct

from routing.reserved import Fetch, Handover, Leaving, Part, Renew, Replay
from routing.wire_types import (
    MAX_HOPS,
    MAX_NODES_PER_WAVE,
    MAX_VERIFIED_NODES,
    Addresses,
    Auth,
    Bits,
    Count,
    Name,
    Seconds,
    SessionBytes,
    Text,
)

PROTOCOL_VERSION = 2


class Hello(Struct, frozen=True, array_like=True, tag=1):
    """First on every stream, both ways.

    ``auth`` is empty in an open swarm. ``nonce`` is 16 random bytes of the sender.
    """

    version: Count
    features: Annotated[tuple[Name, ...], Meta(max_length=32)] = ()
    nonce: Annotated[bytes, Meta(max_length=64)] = b""
    auth: Auth = b""


class Ready(Struct, frozen=True, array_like=True, tag=2):
    """The sender accepts the other's Hello; what follows is work."""

    auth: Auth = b""


class Ping(Struct, frozen=True, array_like=True, tag=3):
    """Are you there, and how are you?"""

    nonce: Count


class Pong(Struct, frozen=True, array_like=True, tag=4):
    """The answer to a Ping, with what changes too often for a record."""

    nonce: Count
    state: Name
    num_free_kv_tokens: Count
    queue: Count
    num_sessions: Count
    num_wire_errors: Count


class HopEntry(Struct, frozen=True, array_like=True):
    """One hop of a route."""

    peer: Name
    start: Count
    end: Count
    addresses: Addresses = ()


class Open(Struct, frozen=True, array_like=True, tag=5):
    """Client to every hop: take part in a session. Answered by Opened, Busy or Fault.

    Attributes:
        epoch: counts the routes of a session, from 0.
        index: the receiver's place in ``route``.
        num_kv_tokens: slots of KV cache that are wanted.
        sampling: how tokens are drawn, by name; a name that a hop does not know is refused.
        tip: the node that a hop of an earlier epoch goes back to; 0 for a new session.
        needs: features that the session depends on, by name; a hop that lacks one refuses.
        wire_dtype: what rows are sent in; empty for the hops' own.
        num_recycled: likeliest next ids wanted of each verified row; 0 for none.
        adapter: of the weights; empty for none.
        weights_class: that the client insists on; empty for any.
        num_logprobs: alternatives whose log-probabilities are wanted with each token; 0 for none.
    """

    session: SessionBytes
    epoch: Count
    model: Name
    index: Count
    route: Annotated[tuple[HopEntry, ...], Meta(min_length=1, max_length=MAX_HOPS)]
    num_kv_tokens: Count
    sampling: Annotated[dict[Name, int | float | Text], Meta(max_length=32)] = {}
    tip: Count = 0
    needs: Annotated[tuple[Name, ...], Meta(max_length=32)] = ()
    wire_dtype: Name = ""
    num_recycled: Annotated[int, Meta(ge=0, le=64)] = 0
    adapter: Name = ""
    weights_class: Name = ""
    num_logprobs: Annotated[int, Meta(ge=0, le=64)] = 0


class Opened(Struct, frozen=True, array_like=True, tag=6):
    """The hop has reached its successor and holds ``num_kv_tokens`` of KV cache for the session.

    Attributes:
        held: the committed node up to which it still has the session's keys and values.
        journal_from: the committed node from which on it could replay its rows; None without a journal.
        first_grant: bytes of waves that it takes before its first Grant.
    """

    session: SessionBytes
    epoch: Count
    num_kv_tokens: Count
    held: Count = 0
    journal_from: Count | None = None
    first_grant: Count = 0


class Busy(Struct, frozen=True, array_like=True, tag=7):
    """The hop has no room for the session now."""

    session: SessionBytes
    epoch: Count
    retry_after_seconds: Seconds


class Rows(Struct, frozen=True, array_like=True):
    """Hidden states, one row for each node that is present, in order: ``num_rows * width`` numbers, little endian."""

    dtype: Name
    num_rows: Count
    width: Count
    data: memoryview
    present: Bits = b""


class Timing(Struct, frozen=True, array_like=True):
    """What one hop did for a wave: rows computed in the pass that it was in, waiting and computing."""

    num_rows: Count
    queue_seconds: Seconds
    compute_seconds: Seconds


Timings = Annotated[tuple[Timing, ...], Meta(max_length=MAX_HOPS)]


class Wave(Struct, frozen=True, array_like=True, tag=8):
    """New nodes for a session's token tree; down the route, from hop to hop.

    Attributes:
        wave: counts the session's waves, from 1.
        commit: the node up to which the tree is final; what does not hang from it is dropped. A committed node
            before the tip changes nothing, unless ``rewind`` is set.
        start: where the verifier's walk begins; 0 for no walk.
        nodes: (id, parent, token), parents before children; those of this part. May be empty.
        rows: the output of the hop before; None from the client.
        timings: of the hops that it has passed.
        if_tip: kept for waves in flight; must be None.
        last_hop: kept for replays; must be None.
        rewind: go back to ``commit``, which may lie before the tip, and drop all other nodes after it.
        first_row: place of the part's first node in the whole wave. A hop may cut a wave before its start.
        is_last_part: does the wave end with this part?
        is_cancelled: the wave ends here, whatever part of it has come: nothing more of it is computed.
        weights: of the drafts, one byte a node; kept for adaptive verification, must be empty.
        digest: of the rows; kept for audits, must be empty.
    """

    session: SessionBytes
    epoch: Count
    wave: Annotated[int, Meta(ge=1, lt=2**53)]
    commit: Count
    start: Count
    nodes: Annotated[tuple[tuple[Count, Count, Count], ...], Meta(max_length=MAX_NODES_PER_WAVE)]
    rows: Rows | None = None
    timings: Timings = ()
    if_tip: tuple[Count, Count] | None = None
    last_hop: Count | None = None
    rewind: bool = False
    first_row: Annotated[int, Meta(ge=0, le=MAX_NODES_PER_WAVE)] = 0
    is_last_part: bool = True
    is_cancelled: bool = False
    weights: Annotated[bytes, Meta(max_length=MAX_NODES_PER_WAVE)] = b""
    digest: Annotated[bytes, Meta(max_length=64)] = b""


class Recycled(Struct, frozen=True, array_like=True):
    """The likeliest next ids after each row that is present: ``num_ids`` for each, little endian, likeliest first.

    ``weights`` has a byte of log-probability for each id, or is empty. ``num_last`` ids come for the last row alone.
    """

    num_ids: Annotated[int, Meta(ge=1, le=64)]
    num_last: Annotated[int, Meta(ge=0, le=64)]
    id_bytes: Annotated[int, Meta(ge=2, le=4)]
    ids: Annotated[bytes, Meta(max_length=64 << 10)]
    weights: Annotated[bytes, Meta(max_length=16 << 10)] = b""
    present: Bits = b""


class Verdict(Struct, frozen=True, array_like=True, tag=9):
    """Last hop to client: the walk from ``start`` went down ``path`` and ended with a token that no child has.

    Attributes:
        path: ids of the accepted nodes below ``start``, in order.
        next_token: what comes after them.
        recycled: if it was asked for.
        logprobs: of the tokens and their alternatives, if they were asked for.
        loose: which tokens of the path were accepted loosely.
        variation: total variation that was spent on them.
    """

    session: SessionBytes
    epoch: Count
    wave: Count
    path: Annotated[tuple[Count, ...], Meta(max_length=MAX_VERIFIED_NODES)]
    next_token: Count
    timings: Timings = ()
    recycled: Recycled | None = None
    logprobs: Annotated[bytes, Meta(max_length=256 << 10)] = b""
    loose: Bits = b""
    variation: Seconds = 0.0


class Done(Struct, frozen=True, array_like=True, tag=10):
    """Last hop to client: a wave without a walk went through. ``rows`` if hidden states were asked for."""

    session: SessionBytes
    epoch: Count
    wave: Count
    timings: Timings = ()
    rows: Rows | None = None


class Stale(Struct, frozen=True, array_like=True, tag=11):
    """Last hop to client: the wave was cancelled, or hangs from a draft that was wrong; nothing came of it."""

    session: SessionBytes
    epoch: Count
    wave: Count
    timings: Timings = ()
    recycled: Recycled | None = None


class Cancel(Struct, frozen=True, array_like=True, tag=12):
    """Client to every hop: the waves from ``wave`` to ``through`` are not wanted any more.

    What has not been computed yet goes on without nodes, so that numbers stay in order; each is still answered. The
    next wave has ``rewind`` set, since hops may differ in how far they got.
    """

    session: SessionBytes
    epoch: Count
    wave: Count
    through: Count


class Close(Struct, frozen=True, array_like=True, tag=13):
    """Client to every hop, and hop to hop: the session is over, its KV is free."""

    session: SessionBytes


class Fault(Struct, frozen=True, array_like=True, tag=14):
    """Something can't go on; ``text`` is for a person. With no session it ends the stream."""

    code: Name
    text: Text
    session: Annotated[bytes, Meta(max_length=16)] = b""
    epoch: Count = 0
    wave: Count = 0


class Bye(Struct, frozen=True, array_like=True, tag=15):
    """The last message of a stream that ends as it should."""


class Grant(Struct, frozen=True, array_like=True, tag=16):
    """Hop to the hop before: of this session it takes ``num_bytes`` of waves in all, counted from the Open."""

    session: SessionBytes
    epoch: Count
    num_bytes: Count


class Unknown(Struct, frozen=True):
    """A message of a kind that this version does not know. Never sent."""

    kind: int
    session: bytes = b""


Known = (
    Hello
    | Ready
    | Ping
    | Pong
    | Open
    | Opened
    | Busy
    | Wave
    | Verdict
    | Done
    | Stale
    | Cancel
    | Close
    | Fault
    | Bye
    | Grant
    | Renew
    | Replay
    | Leaving
    | Handover
    | Fetch
    | Part
)
Message = Known | Unknown

LAST_KIND = len(get_args(Known))
