"""Which sessions a hop takes, and which waves can't be: what depends on the message alone. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from peer.formats import ELEMENT_BYTES
from routing.domain import Hop, ModelId, PeerId, Route, SamplingParams, Span, short
from routing.errors import SwarmError, WireError
from routing.messages import Open, Wave
from routing.wire import route_of, sampling_of

FEATURES = ("verify", "rewind", "cancel", "parts", "credit")
"""What a session may depend on here, by the names that ``Open.needs`` uses."""


class Refused(SwarmError):
    """What was asked can't be done here. ``code`` is for programs."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


@dataclass(frozen=True, slots=True)
class Served:
    """What a hop serves.

    Attributes:
        peer: who it is.
        model: which model the blocks are of.
        num_blocks: of the whole model.
        span: the blocks that are loaded.
        hidden_size: numbers in a row.
        vocab_size: token ids are below it.
        weights_class: dtype and quantization of the weights.
        num_kv_tokens: slots of KV cache for all sessions together.
        max_text: slots that one session may have at most, because positions beyond mean something else; None for any.
    """

    peer: PeerId
    model: ModelId
    num_blocks: int
    span: Span
    hidden_size: int
    vocab_size: int
    weights_class: str
    num_kv_tokens: int
    max_text: int | None = None


@dataclass(frozen=True, slots=True)
class Admitted:
    """What an Open asks for, checked."""

    route: Route
    hop: Hop
    params: SamplingParams


def admit(message: Open, served: Served) -> Admitted:
    """Could this hop ever take part in the session?

    Raises:
        Refused: it could not; the text says why.
    """
    try:
        route, params = route_of(message), sampling_of(message)
    except WireError as error:
        raise Refused("malformed", str(error)) from None
    hop = route.hops[message.index]
    if message.model != str(served.model):
        raise Refused("wrong-model", f"this peer serves {served.model}, not {message.model}")
    if hop.peer != served.peer:
        raise Refused("wrong-peer", f"hop {message.index} of the route is {short(hop.peer)}, this is another peer")
    if len({entry.peer for entry in route.hops}) < len(route):
        raise Refused("malformed", "a peer is in the route twice")
    if not served.span.covers(hop.span) or route.num_blocks != served.num_blocks:
        text = f"this peer serves the blocks {served.span} of {served.num_blocks}, not {hop.span} of {route.num_blocks}"
        raise Refused("wrong-span", text)
    if message.weights_class not in ("", served.weights_class):
        text = f"this peer's weights are {served.weights_class}, not {message.weights_class}"
        raise Refused("wrong-weights", text)
    if lacking := [need for need in message.needs if need not in FEATURES]:
        raise Refused("needs", f"this peer can't do {', '.join(lacking)[:200]}")
    if unknown := _unsupported(message):
        raise Refused("unsupported", f"{unknown} is not in this version")
    limit = min(served.num_kv_tokens, served.max_text or served.num_kv_tokens)
    if not 0 < message.num_kv_tokens <= limit:
        why = "that this peer has room for" if limit == served.num_kv_tokens else "that this model's positions allow"
        raise Refused("too-long", f"{message.num_kv_tokens} tokens are more than all the {limit} {why}")
    return Admitted(route, hop, params)


def _unsupported(message: Open) -> str:
    """The first thing in an Open that this version reserves and does not do."""
    asked = {
        "changing the route of a session": message.epoch or message.tip,
        "another dtype on the wire": message.wire_dtype,
        "recycling tokens": message.num_recycled,
        "an adapter": message.adapter,
        "log-probabilities": message.num_logprobs,
    }
    return next((name for name, value in asked.items() if value), "")


def check_wave(wave: Wave, served: Served, span: Span) -> None:
    """Could a wave be computed, by what it says itself?

    Raises:
        Refused: it could not; the text says why.
    """
    reserved = {
        "waves in flight": wave.if_tip is not None,
        "replays": wave.last_hop is not None,
        "draft weights": wave.weights,
        "digests of rows": wave.digest,
        "rows of some nodes only": wave.rows is not None and wave.rows.present,
    }
    if name := next((name for name, value in reserved.items() if value), ""):
        raise Refused("unsupported", f"{name}: not in this version")
    if not wave.nodes and not wave.is_last_part:
        raise Refused("bad-wave", "a part that has no nodes, and more to come")
    highest = max((token for _, _, token in wave.nodes), default=0)
    if highest >= served.vocab_size:
        raise Refused("bad-wave", f"token {highest} is not in the model's vocabulary of {served.vocab_size}")
    rows, num_rows, width = wave.rows, len(wave.nodes), served.hidden_size
    if span.start == 0 or not wave.nodes:
        if rows is not None:
            raise Refused("bad-wave", f"the wave needs no rows, it has {rows.num_rows}")
        return
    if rows is None or rows.dtype not in ELEMENT_BYTES or (rows.num_rows, rows.width) != (num_rows, width):
        got = "none" if rows is None else f"{rows.num_rows} x {rows.width} {rows.dtype[:20]}"
        raise Refused("bad-wave", f"the wave needs {num_rows} rows of width {width}, it has {got}")
    if len(rows.data) != num_rows * width * ELEMENT_BYTES[rows.dtype]:
        raise Refused("bad-wave", f"{num_rows} x {width} {rows.dtype} are not {len(rows.data)} bytes")
