"""Every test here runs on a virtual clock: waiting costs nothing, and a deadlock is an error at once."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from transformers import PreTrainedModel

from tests.by_hand import PROMPT
from tests.tiny_models import greedy, make_llama, plain


class VirtualSelector(selectors.DefaultSelector):
    """Where a loop would sleep until its next timer, the clock jumps there."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready: list[tuple[selectors.SelectorKey, int]] = super().select(0)
        if ready:
            return ready
        if timeout is None:
            raise RuntimeError("deadlock: nothing is ready and no timer is set")
        self.now += timeout
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """A loop whose time is the selector's."""

    def __init__(self) -> None:
        self._virtual = VirtualSelector()
        super().__init__(self._virtual)

    def time(self) -> float:
        return self._virtual.now


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"virtual": VirtualLoop}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model."""
    return make_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def oracle(folder: Path) -> PreTrainedModel:
    """The model as plain transformers runs it."""
    return plain(folder)


@pytest.fixture(scope="module")
def reference(oracle: PreTrainedModel) -> list[int]:
    """What it says to the prompt of ``tests.by_hand``."""
    return greedy(oracle, PROMPT, 48)
