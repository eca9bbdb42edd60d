"""How every stream begins: Hello both ways, then Ready.

The dialler says Hello; the acceptor answers with its own Hello and Ready, or with a Fault that says why not; the
dialler's Ready comes with its first work. A peer whose process is stopped still lets streams open: only these answers
show that somebody is there.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Sequence

from routing.domain import PeerId
from routing.errors import (
    NotAuthorized,
    PeerRefused,
    PeerTimeout,
    PeerUnreachable,
    PeerUntrusted,
    VersionMismatch,
    WireError,
)
from routing.messages import PROTOCOL_VERSION, Fault, Hello, Ready
from routing.streams import MessageStream
from routing.transport import Transport

HANDSHAKE_SECONDS = 10.0


def own_hello() -> Hello:
    """Our Hello for a new stream."""
    return Hello(PROTOCOL_VERSION, (), secrets.token_bytes(16))


def check_hello(hello: Hello) -> None:
    """Can we work with who says this?

    Raises:
        VersionMismatch: another version of the protocol.
        NotAuthorized: it proves a key, so its swarm is private, and ours is open.
    """
    if hello.version != PROTOCOL_VERSION:
        raise VersionMismatch(
            f"this side speaks protocol version {PROTOCOL_VERSION}, the other {hello.version}: update the older one"
        )
    if hello.auth:
        raise NotAuthorized("the other side belongs to a private swarm, this one is open: give both the same swarm key")


async def dial(
    transport: Transport, peer: PeerId, addresses: Sequence[str], timeout_seconds: float = HANDSHAKE_SECONDS
) -> MessageStream:
    """Connect to a peer and greet it.

    Raises:
        PeerError: nobody answers there (PeerUnreachable), somebody lets us in and then says nothing (PeerTimeout),
            it does not want us or we can't work with it (PeerRefused), or it does not speak our protocol
            (PeerUntrusted).
    """
    stream: MessageStream | None = None
    try:
        async with asyncio.timeout(timeout_seconds):
            stream = await transport.connect(peer, addresses)
            stream.send(own_hello())
            answer = await stream.receive()
            if isinstance(answer, Fault):
                raise PeerRefused(peer, answer.text)
            if not isinstance(answer, Hello):
                raise WireError(f"{type(answer).__name__} in the place of Hello")
            check_hello(answer)
            if not isinstance(await stream.receive(), Ready):
                raise WireError("no Ready after Hello")
            stream.send(Ready())
            greeted, stream = stream, None
            return greeted
    except TimeoutError:
        raise PeerTimeout(peer, f"no answer within {timeout_seconds:.0f} s") from None
    except (VersionMismatch, NotAuthorized) as error:
        raise PeerRefused(peer, str(error)) from None
    except WireError as error:
        raise PeerUntrusted(peer, str(error)) from None
    finally:
        if stream is not None:
            await stream.close()


async def welcome(stream: MessageStream, timeout_seconds: float = HANDSHAKE_SECONDS) -> None:
    """Greet who opened ``stream``; who can't be worked with is told why.

    Raises:
        WireError: what came is no greeting of ours (VersionMismatch: of another version), or none came in time.
        NotAuthorized: it belongs to a private swarm.
        PeerUnreachable: it went away.
    """
    try:
        async with asyncio.timeout(timeout_seconds):
            hello = await stream.receive()
            if not isinstance(hello, Hello):
                raise WireError(f"{type(hello).__name__} in the place of Hello")
            check_hello(hello)
            stream.send(own_hello())
            stream.send(Ready())
            if not isinstance(await stream.receive(), Ready):
                raise WireError("no Ready after Hello")
    except TimeoutError:
        raise WireError(f"no greeting within {timeout_seconds:.0f} s") from None
    except VersionMismatch as error:
        with contextlib.suppress(PeerUnreachable):
            stream.send(Fault("version", str(error)))
        raise
    except NotAuthorized as error:
        with contextlib.suppress(PeerUnreachable):
            stream.send(Fault("unauthorized", str(error)))
        raise
