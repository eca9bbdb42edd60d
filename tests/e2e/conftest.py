"""Real processes: no test leaves a complaint of asyncio behind, and no file of tests a process or a folder."""

from __future__ import annotations

import asyncio
import gc
import logging
import multiprocessing.util
import os
import shutil
import tempfile
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from routing.identity import Identity
from routing.p2p.node import P2PNode
from swarm.models import EMBEDDED, ModelFolder, resolve
from tests.e2e.nodes import GUARD_SECONDS, NodeFactory

multiprocessing.util.get_temp_dir()  # this process's own: made once, not in a folder of a test
os.environ["SPECSWARM_TEST"] = uuid.uuid4().hex
_MARK = f"SPECSWARM_TEST={os.environ['SPECSWARM_TEST']}"


@pytest.fixture(autouse=True, scope="session")
def embedded() -> ModelFolder:
    """The embedded model, imported before any command could have to say that it does so."""
    return resolve(EMBEDDED, None, print)


@pytest.fixture(autouse=True, scope="module")
def nothing_left(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    tmp_path_factory.getbasetemp()  # lies outside of our folder
    folder = tempfile.mkdtemp(prefix="t-", dir="/tmp")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", folder)
        patch.setenv("TMPDIR", folder)
        yield
    gc.collect()
    left = os.listdir(folder)
    shutil.rmtree(folder)
    assert left == []
    assert _processes() == []


@pytest.fixture(autouse=True)
def no_complaints(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    yield
    gc.collect()
    assert [record.getMessage() for record in caplog.get_records("call") if _is_complaint(record)] == []


_LOGGERS = ("asyncio", "routing.p2p.daemon", "routing.p2p.storage", "routing.stream_pool")


def _is_complaint(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR and record.name in _LOGGERS


def _processes() -> list[str]:
    """Command lines of the processes that tests have started and that still run."""
    running = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            is_ours = _MARK.encode() in (folder / "environ").read_bytes().split(b"\0")
            is_zombie = (folder / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
            if is_ours and not is_zombie and int(folder.name) != os.getpid():
                running.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:
            continue
    return running


@pytest.fixture
async def start() -> AsyncIterator[NodeFactory]:
    """Starts nodes, and closes them when the test is over."""
    nodes: list[P2PNode] = []

    async def start_one(identity: Identity | None = None, **settings: object) -> P2PNode:
        node = await P2PNode.create(identity or Identity.generate(), **settings)  # type: ignore[arg-type]
        nodes.append(node)
        return node

    async with asyncio.timeout(2 * GUARD_SECONDS):
        yield start_one
        for node in reversed(nodes):
            await node.close()
