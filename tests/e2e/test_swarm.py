"""One swarm of real processes that serves SmolLM2: a bootstrap, two peers, and a third by the real command."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import pytest_asyncio
from hivemind.dht.routing import DHTID
from hivemind.p2p import PeerID

from peer.node import PeerSettings, ServingPeer
from routing.domain import PeerId, PeerRecord, PeerState, SamplingParams, Span
from routing.errors import PeerUnreachable, WireError
from routing.handshake import dial
from routing.identity import Identity
from routing.messages import Fault, Ping, Pong
from routing.p2p.directory import get_dht_time
from routing.p2p.node import P2PNode
from routing.record_rules import model_key
from routing.records import sign_record
from routing.streams import MessageStream
from swarm.client import SwarmClient
from swarm.local_swarm import LocalSwarm, PeerPlan, stop_fork_server
from swarm.models import EMBEDDED, ModelFolder, ModelName
from swarm.speculation import Speculation
from swarm.tokenizer import Tokenizer
from tests.e2e.commands import SWARM, WAIT_SECONDS, Serving, environment, swarm
from tests.peer_records import record_of
from tests.tiny_models import assert_greedy, plain

pytestmark = pytest.mark.asyncio(loop_scope="module")

PROMPT = "A list of three rivers: the Rhine, the Danube"
NUM_TOKENS = 24


@dataclass(frozen=True, slots=True)
class Running:
    folder: ModelFolder
    local: LocalSwarm
    third: Serving

    @property
    def initial_peers(self) -> tuple[str, ...]:
        return self.local.initial_peers

    @property
    def name(self) -> ModelName:
        return ModelName.of(self.folder.name, self.folder.path)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(embedded: ModelFolder) -> AsyncIterator[Running]:
    folder = embedded
    plans = [PeerPlan(folder.path, folder.name, Span(start, start + 10), f"peer-{start}") for start in (0, 10)]
    async with LocalSwarm(plans, print) as local:
        third = await Serving.start(
            "serve", "--blocks", "20:30", "--listen", "/ip4/127.0.0.1/tcp/0", "--name", "third",
            initial_peers=local.initial_peers,
        )  # fmt: skip
        try:
            yield Running(folder, local, third)
        finally:
            await third.close()
    stop_fork_server()


async def test_generate_says_what_plain_transformers_says(running: Running) -> None:
    tokenizer = Tokenizer.load(running.folder.path)
    prompt = tokenizer.encode(PROMPT)
    answers: list[list[int]] = []
    async with await SwarmClient.connect(running.name, running.initial_peers) as client:
        for speculation in (0, None):
            async with await client.open(200, SamplingParams(), speculation=Speculation(speculation)) as conversation:
                answers.append([token async for part in conversation.ask(prompt, NUM_TOKENS) for token in part])
    assert answers[0] == answers[1]
    assert len(answers[0]) == NUM_TOKENS
    assert_greedy(plain(running.folder.path), prompt, answers[0])

    arguments = ("generate", EMBEDDED, "-", "--max-tokens", str(NUM_TOKENS), "--stats")
    result = await swarm(*arguments, initial_peers=running.initial_peers, stdin=PROMPT)
    assert result.status == 0, result.err
    ends = [index for index, token in enumerate(answers[0]) if token in tokenizer.eos_ids]
    assert result.out == tokenizer.decode(answers[0][: ends[0] if ends else None]) + "\n"
    assert "round trips" in result.err


async def test_the_example_asks_the_swarm(running: Running) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "examples/ask.py", "Name a river.", stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE, env=environment(running.initial_peers), cwd=Path(__file__).parents[2],
    )  # fmt: skip
    async with asyncio.timeout(WAIT_SECONDS):
        out, err = await process.communicate()
    assert process.returncode == 0, err
    assert "tokens a second over 0:10 at" in out.decode().splitlines()[-1]


async def test_chat_over_a_pipe_answers_two_turns(running: Running) -> None:
    questions = "What is the capital of Italy?\nAnd of Spain?\n"
    result = await swarm("chat", "--max-tokens", "12", "--stats", initial_peers=running.initial_peers, stdin=questions)
    assert result.status == 0, result.err
    assert len(result.out.splitlines()) >= 2
    assert result.err.count("round trips") == 2

    tokenizer = Tokenizer.load(running.folder.path)
    first, second = ({"role": "user", "content": line} for line in questions.splitlines())
    alone = await swarm(
        "generate", EMBEDDED, first["content"], "--chat", "--max-tokens", "12", initial_peers=running.initial_peers
    )
    assert result.out.startswith(alone.out)
    answer = {"role": "assistant", "content": alone.out.rstrip("\n")}
    prompt = tokenizer.chat([first, answer, second])
    async with (
        await SwarmClient.connect(running.name, running.initial_peers) as client,
        await client.open(400) as conversation,
    ):
        tokens = [token async for part in conversation.ask(prompt, 12, tokenizer.eos_ids) for token in part]
    assert result.out.removeprefix(alone.out) == tokenizer.decode(tokens) + "\n"


async def test_a_chat_that_is_full_says_so(running: Running) -> None:
    questions = "Name a river.\n" + "and " * 60 + "\n"
    result = await swarm(
        "chat", "--context", "64", "--max-tokens", "8", initial_peers=running.initial_peers, stdin=questions
    )
    assert result.status == 1
    assert len(result.out.splitlines()) == 1
    assert result.err == "swarm: this chat has filled its 64 tokens: start a new one, or give a larger --context\n"


class Screen:
    """What a program has written to its terminal."""

    def __init__(self, terminal: int) -> None:
        self.text = ""
        self._terminal = terminal
        self._news = asyncio.Event()
        asyncio.get_running_loop().add_reader(terminal, self._read)

    def _read(self) -> None:
        try:
            self.text += os.read(self._terminal, 4096).decode(errors="replace")
        except OSError:  # the other end is closed
            asyncio.get_running_loop().remove_reader(self._terminal)
        self._news.set()

    def type(self, text: str) -> None:
        os.write(self._terminal, text.encode())

    async def until(self, holds: Callable[[str], bool]) -> None:
        while not holds(self.text):
            self._news.clear()
            await self._news.wait()


async def test_at_a_terminal_ctrl_c_stops_an_answer_and_ctrl_d_ends_the_chat(running: Running) -> None:
    terminal, theirs = os.openpty()
    process = await asyncio.create_subprocess_exec(
        SWARM, "chat", "--max-tokens", "2000", stdin=theirs, stdout=theirs, stderr=theirs,
        env=environment(running.initial_peers), start_new_session=True,
    )  # fmt: skip
    os.close(theirs)
    screen = Screen(terminal)
    question = "Write a very long story about a river, with at least fifty paragraphs."
    try:
        async with asyncio.timeout(WAIT_SECONDS):
            await screen.until(lambda text: text.endswith("> "))
            screen.type(question + "\n")
            await screen.until(lambda text: len(text.partition(question)[2]) > 30)
            process.send_signal(signal.SIGINT)  # as the terminal does at Ctrl-C
            await screen.until(lambda text: text.endswith("\r\n> "))
            screen.type("\x04")
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        asyncio.get_running_loop().remove_reader(terminal)
        os.close(terminal)
    assert "Ctrl-D ends the chat" not in screen.text  # it was the answer that was stopped
    assert "Traceback" not in screen.text


async def test_status_shows_who_covers_what(running: Running) -> None:
    result = await swarm("status", "--json", initial_peers=running.initial_peers)
    assert result.status == 0, result.err
    report = json.loads(result.out)
    assert report["num_blocks"] == 30
    assert report["missing"] == []
    assert [(peer["blocks"], peer["name"], peer["state"]) for peer in report["peers"]] == [
        ("0:10", "peer-0", "online"),
        ("10:20", "peer-10", "online"),
        ("20:30", "third", "online"),
    ]
    for peer in report["peers"]:
        assert peer["rtt_ms"] > 0
        assert peer["step_ms"] > 0
        assert peer["num_free_kv_tokens"] > 0
        assert peer["version"]
    table = await swarm("status", initial_peers=running.initial_peers)
    assert all(text in table.out for text in ("0:10", "10:20", "20:30", "third", "online", "float32"))


async def third_peer(node: P2PNode) -> PeerRecord:
    return next(record for record in await node.lookup(EMBEDDED) if record.name == "third")


async def num_wire_errors(stream: MessageStream) -> int:
    stream.send(Ping(1))
    pong = await stream.receive()
    assert isinstance(pong, Pong)
    return pong.num_wire_errors


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        (bytes(range(256)) * 3, "chunk of"),
        (b"\0\0\0\0" + (1 << 30).to_bytes(4, "big"), "chunk of"),
        (b"\0\0\0\0" + (9).to_bytes(4, "big") + b"truncated"[:5], "middle of a message"),
        (b"\0\0\0\0" + (9).to_bytes(4, "big") + b"no msgpck", "not a message"),
    ],
    ids=["random bytes", "oversized", "truncated", "no message"],
)
async def test_bytes_that_are_no_frames_get_an_error_and_are_counted(running: Running, sent: bytes, said: str) -> None:
    node = await P2PNode.create(Identity.generate(), initial_peers=running.initial_peers, client_only=True)
    try:
        async with asyncio.timeout(120):
            record = await third_peer(node)
            good = await dial(node, record.peer, record.addresses)
            before = await num_wire_errors(good)
            bad = await node.connect(record.peer, record.addresses)
            bad._writer.write(sent)
            await bad._writer.drain()
            if said == "middle of a message":
                bad._writer.close()  # half of a frame, and away
            else:
                fault = await bad.receive()
                assert isinstance(fault, Fault)
                assert said in fault.text
                with pytest.raises((PeerUnreachable, WireError)):
                    await bad.receive()
            while await num_wire_errors(good) == before:  # noqa: ASYNC110 - the peer says it only when asked
                await asyncio.sleep(0.05)
            assert await num_wire_errors(good) == before + 1
            await bad.close()
            await good.close()
    finally:
        await node.close()


async def test_a_record_that_another_key_has_signed_is_refused_by_every_node(running: Running) -> None:
    stranger_identity = Identity.generate()
    stranger = await P2PNode.create(stranger_identity, initial_peers=running.initial_peers)
    try:
        async with asyncio.timeout(120):
            records = await stranger.lookup(EMBEDDED)
            victim = next(record for record in records if record.name == "third")
            own = record_of(
                stranger.peer_id, model=victim.model, num_blocks=30, span=Span(0, 30), expiry=get_dht_time() + 300
            )
            forged = sign_record(stranger_identity, own).replace(stranger.peer_id.encode(), victim.peer.encode())
            protocol = stranger._directory.dht.protocol
            key, value = DHTID.generate(model_key(EMBEDDED)), protocol.serializer.dumps(forged)
            bootstrap = running.initial_peers[0].rpartition("/p2p/")
            nodes = [(PeerId(bootstrap[2]), (bootstrap[0],)), *((r.peer, r.addresses) for r in records)]
            assert len(nodes) == 4
            for peer, addresses in nodes:
                await stranger._daemon.dial(peer, addresses)
                remote = PeerID.from_base58(peer)
                assert await protocol.call_store(remote, [key], [value], [own.expiry], [victim.peer]) == [False]
                own_value = protocol.serializer.dumps(sign_record(stranger_identity, own))
                assert await protocol.call_store(remote, [key], [own_value], [own.expiry], [own.peer]) == [True]
            assert victim in await stranger.lookup(EMBEDDED)
            await stranger.publish(replace(own, state=PeerState.GONE, expiry=own.expiry + 1))
    finally:
        await stranger.close()


async def test_a_record_is_renewed_before_it_ends(embedded: ModelFolder) -> None:
    settings = PeerSettings(embedded.path, embedded.name, Identity.generate(), Span(0, 1), renew_seconds=0.2)
    async with asyncio.timeout(WAIT_SECONDS), await ServingPeer.start(settings, print) as peer:
        [first] = await peer.p2p.lookup(EMBEDDED)
        while (now := (await peer.p2p.lookup(EMBEDDED))[0]).sequence == first.sequence:  # noqa: ASYNC110 - a DHT calls nobody
            await asyncio.sleep(0.2)
        assert now.sequence > first.sequence
        assert now.expiry > first.expiry > get_dht_time()


async def test_a_peer_that_is_told_to_stop_leaves_cleanly_and_its_blocks_are_missing(running: Running) -> None:
    status, said = await running.third.end(signal.SIGTERM)
    assert status == 0, said
    assert "left the swarm" in said
    result = await swarm("status", "--json", initial_peers=running.initial_peers)
    assert result.status == 1
    report = json.loads(result.out)
    assert report["missing"] == ["20:30"]
    assert [peer["blocks"] for peer in report["peers"]] == ["0:10", "10:20"]
    assert "nobody serves the blocks 20:30: start a peer with `swarm serve MODEL --blocks 20:30`" in result.err
    failed = await swarm("generate", EMBEDDED, PROMPT, initial_peers=running.initial_peers)
    assert failed.status == 1
    assert failed.out == ""
    assert failed.err.startswith(f"swarm: no peer serves the blocks 20:30 of {EMBEDDED}: start one with")


async def test_a_new_peer_takes_the_blocks_that_are_missing(running: Running) -> None:
    memory = "400M"  # for some twenty blocks
    peer = await Serving.start(
        "serve", "--max-memory", memory, "--listen", "/ip4/127.0.0.1/tcp/0", initial_peers=running.initial_peers
    )
    try:
        chosen = next(line for line in peer.lines if "those that the swarm needs most" in line)
        start, _, end = chosen.split("the blocks ")[1].split()[0].partition(":")
        assert int(end) == 30
        assert int(start) <= 20
        result = await swarm("generate", EMBEDDED, PROMPT, "--max-tokens", "3", initial_peers=running.initial_peers)
        assert result.status == 0, result.err
        status, said = await peer.end(signal.SIGINT)
        assert status == 0, said
    finally:
        await peer.close()
