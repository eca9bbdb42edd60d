"""Commands that can't do what they are asked end with one clear line and a status that is not 0."""

from __future__ import annotations

import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from routing.domain import Span
from routing.identity import Identity
from swarm.local_swarm import LocalSwarm, PeerPlan, stop_fork_server
from swarm.models import EMBEDDED
from tests.e2e.commands import Serving, swarm
from tests.tiny_models import make_llama

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def tiny(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[Path, LocalSwarm]]:
    """A swarm of one peer that serves half of a tiny model."""
    folder = make_llama(tmp_path_factory.mktemp("models") / "tiny")
    async with LocalSwarm([PeerPlan(folder, "tiny", Span(0, 3))], print) as local:
        yield folder, local
    stop_fork_server()


def one_line(text: str) -> str:
    assert text.count("\n") == 1, text
    return text.strip()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("generate", EMBEDDED, "hello"), "which swarm? give --initial-peers ADDRESS"),
        (("chat",), "which swarm?"),
        (("status",), "which swarm?"),
        (("generate", EMBEDDED, "hello", "--initial-peers", "here"), "'here' is not a peer's address: write it like"),
        (("generate", EMBEDDED, "hello", "--top-p", "2"), "top-p 2.0 must be above 0 and at most 1"),
        (("generate", EMBEDDED, "hello", "--speculation", "many"), "--speculation many: give auto, off, or a number"),
        (("serve", "nothing-here"), "is no model here; give smollm2-135m-instruct"),
        (("serve", "org/model"), "looks like a model on the hub: download it first"),
        (("serve", "--blocks", "7"), "--blocks: '7' is no span: write START:END"),
        (("serve", "--dtype", "int3"), "--dtype int3: give one of float32, bfloat16, float16"),
        (("serve", "--listen", "localhost:80"), "is not an address to listen at: write it like"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
async def test_a_wrong_argument_is_answered_with_what_to_give(arguments: tuple[str, ...], said: str) -> None:
    result = await swarm(*arguments)
    assert result.status == 1
    assert result.out == ""
    assert said in one_line(result.err)


async def test_an_unknown_option_is_a_usage_error() -> None:
    result = await swarm("generate", "--colour", "green")
    assert result.status == 2
    assert "No such option: --colour" in result.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("serve", "--blocks", "20:40"), "the model has the blocks 0:30, 20:40 is not among them"),
        (("serve", "--max-memory", "100M"), "100 MiB of memory hold no block of this model"),
        (("serve", "--max-memory", "lots"), "'lots' is no size: write it like 6G or 512M"),
        (("serve", "--blocks", "0:30", "--max-memory", "100M"), "the blocks 0:30 need"),
        (("serve", "--device", "abacus"), "there is no device 'abacus' here"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
async def test_what_cannot_be_served_is_said_before_anything_is_started(arguments: tuple[str, ...], said: str) -> None:
    result = await swarm(*arguments)
    assert result.status == 1
    assert result.out == ""
    assert said in result.err.splitlines()[-1]


async def test_a_bootstrap_that_is_not_there_is_given_up_after_10_seconds() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    address = f"/ip4/127.0.0.1/tcp/{port}/p2p/{Identity.generate().peer_id}"
    result = await swarm("generate", EMBEDDED, "hello", initial_peers=[address])
    assert result.status == 1
    assert f"no peer answered within 10 s at {address}" in one_line(result.err)


async def test_a_missing_span_is_named(tiny: tuple[Path, LocalSwarm]) -> None:
    folder, local = tiny
    result = await swarm("generate", str(folder), "hello", initial_peers=local.initial_peers)
    assert result.status == 1
    assert "no peer serves the blocks 3:6 of tiny" in one_line(result.err)
    status = await swarm("status", str(folder), "--json", initial_peers=local.initial_peers)
    assert status.status == 1
    assert json.loads(status.out)["missing"] == ["3:6"]


@pytest.mark.parametrize("command", [("generate", EMBEDDED, "hello"), ("chat",), ("status",)], ids=" ".join)
async def test_another_models_swarm_is_told_apart(tiny: tuple[Path, LocalSwarm], command: tuple[str, ...]) -> None:
    result = await swarm(*command, initial_peers=tiny[1].initial_peers, stdin="hello\n")
    assert result.status == 1
    line = one_line(result.err)
    assert f"no peer of this swarm serves {EMBEDDED}" in line
    assert "tiny@" in line


async def test_files_that_differ_from_the_peers_are_told_apart(tiny: tuple[Path, LocalSwarm], tmp_path: Path) -> None:
    other = make_llama(tmp_path / "tiny", num_blocks=2)
    result = await swarm("generate", str(other), "hello", initial_peers=tiny[1].initial_peers)
    assert result.status == 1
    assert "our files of tiny have the config" in one_line(result.err)


async def test_an_empty_prompt_and_one_that_is_too_long_are_refused(tiny: tuple[Path, LocalSwarm]) -> None:
    folder, local = tiny
    empty = await swarm("generate", str(folder), "-", initial_peers=local.initial_peers)
    assert (empty.status, "the prompt is empty" in empty.err) == (1, True)
    long = await swarm("generate", str(folder), "-", initial_peers=local.initial_peers, stdin="x" * 5000)
    assert long.status == 1
    assert "5128 tokens of text and answer are more than the 4096 that tiny can read" in one_line(long.err)


async def test_a_bootstrap_keeps_its_identity_and_two_can_meet(tmp_path: Path) -> None:
    key = str(tmp_path / "bootstrap.key")
    listen = ("--listen", "/ip4/127.0.0.1/tcp/0")
    first = await Serving.start("bootstrap", *listen, "--identity", key)
    second = await Serving.start("bootstrap", *listen, initial_peers=[first.address])
    try:
        status, said = await first.end(2)
        assert (status, "stopped" in said) == (0, True)
        again = await Serving.start("bootstrap", *listen, "--identity", key)
        assert again.address.rpartition("/p2p/")[2] == first.address.rpartition("/p2p/")[2]
        await again.end(15)
        await second.end(15)
    finally:
        for one in (first, second):
            await one.close()
