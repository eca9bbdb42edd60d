"""Real processes: each test leaves no process, no folder, no open file and no complaint of asyncio behind."""

from __future__ import annotations

import gc
import logging
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ["SPECSWARM_TEST"] = uuid.uuid4().hex
_MARK = f"SPECSWARM_TEST={os.environ['SPECSWARM_TEST']}"


@pytest.fixture(autouse=True)
def nothing_left(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    folder = tempfile.mkdtemp(prefix="t-", dir="/tmp")
    monkeypatch.setattr(tempfile, "tempdir", folder)
    yield
    gc.collect()
    complaints = [record.getMessage() for record in caplog.get_records("call") if _is_complaint(record)]
    left = os.listdir(folder)
    shutil.rmtree(folder)
    assert left == []
    assert complaints == []
    assert _processes() == []


def _is_complaint(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR and record.name in ("asyncio", "routing.p2p", "routing.stream_pool")


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
