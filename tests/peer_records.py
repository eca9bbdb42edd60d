"""Records of peers that never were, for tests."""

from __future__ import annotations

from dataclasses import replace

from routing.domain import ModelId, PeerId, PeerRecord, PeerState, Span
from routing.messages import PROTOCOL_VERSION

MODEL = ModelId("tiny", "0" * 8, "1" * 8)


def record_of(peer: str, **changes: object) -> PeerRecord:
    """What a peer might say that serves the four blocks of the model ``tiny``, but for the fields given."""
    record = PeerRecord(
        model=MODEL,
        num_blocks=4,
        span=Span(0, 4),
        peer=PeerId(peer),
        addresses=(),
        state=PeerState.ONLINE,
        weights_class="float32",
        software="test",
        protocol=PROTOCOL_VERSION,
        name="",
        num_free_kv_tokens=1000,
        queue=0,
        step_seconds=(),
        features=(),
        sequence=1,
        expiry=2e9,
    )
    return replace(record, **changes)  # type: ignore[arg-type]
