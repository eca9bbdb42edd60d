"""The formats of ``peer.formats`` as torch has them."""

from __future__ import annotations

from typing import cast

import torch

from peer.formats import ELEMENT_BYTES
from routing.errors import ConfigError


def torch_dtype(name: str) -> torch.dtype:
    """The format as torch has it.

    Raises:
        ConfigError: there is no format of this name.
    """
    if name not in ELEMENT_BYTES:
        raise ConfigError(f"{name[:20]!r} is no format of numbers: give one of {', '.join(ELEMENT_BYTES)}")
    return cast(torch.dtype, getattr(torch, name))


def name_of(dtype: torch.dtype) -> str:
    """The name of a format that torch has."""
    return str(dtype).removeprefix("torch.")
