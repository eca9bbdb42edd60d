"""Waves that come before the Open of their session: over another stream they may be faster. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from peer.hop_events import StreamId
from routing.messages import Wave
from routing.wire import credit_of

HOLD_SECONDS = 5.0
MAX_STREAM_BYTES = 8 << 20
"""Held for one stream, whatever sessions it names: its first grant."""
MAX_WAVES = 256
"""Held for all streams."""


@dataclass(frozen=True, slots=True)
class _Held:
    stream: StreamId
    wave: Wave
    since: float


class EarlyWaves:
    """Holds waves of unknown sessions for a moment, in the order in which they came."""

    def __init__(self) -> None:
        self._held: list[_Held] = []

    def put(self, stream: StreamId, wave: Wave, now: float) -> bool:
        """Hold a wave; False if its stream has too much here already."""
        held = sum(credit_of(other.wave) for other in self._held if other.stream == stream)
        if len(self._held) >= MAX_WAVES or held + credit_of(wave) > MAX_STREAM_BYTES:
            return False
        self._held.append(_Held(stream, wave, now))
        return True

    def take(self, session: bytes) -> list[tuple[StreamId, Wave]]:
        """What was held for a session that is open now."""
        taken = [(held.stream, held.wave) for held in self._held if held.wave.session == session]
        self.drop_session(session)
        return taken

    def drop_session(self, session: bytes) -> None:
        """The session will not be opened."""
        self._held = [held for held in self._held if held.wave.session != session]

    def drop_stream(self, stream: StreamId) -> None:
        """The stream has ended."""
        self._held = [held for held in self._held if held.stream != stream]

    def expired(self, now: float) -> list[tuple[StreamId, Wave]]:
        """What was held for too long; it is dropped."""
        late = [(held.stream, held.wave) for held in self._held if now - held.since > HOLD_SECONDS]
        self._held = [held for held in self._held if now - held.since <= HOLD_SECONDS]
        return late
