"""Headers of safetensors files: which tensors lie where, read without their values.

A file is 8 bytes (N, little-endian), N bytes of JSON (name -> dtype, shape, data_offsets), then the values.
Source: https://huggingface.co/docs/safetensors, "Format".
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from routing.errors import ConfigError

_MAX_HEADER_BYTES = 100_000_000  # the format's own limit
_BITS = {"F64": 64, "I64": 64, "U64": 64, "F32": 32, "I32": 32, "U32": 32, "F16": 16, "BF16": 16, "I16": 16, "U16": 16}
_BITS |= {"F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "I8": 8, "U8": 8, "BOOL": 8, "C64": 64}
_BITS |= {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor in a file: ``num_bytes`` from ``offset`` (counted from the start of the file)."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    num_bytes: int
    offset: int

    @property
    def num_elements(self) -> int:
        """Product of the shape; a scalar has one."""
        return prod(self.shape)

    def read_float32(self) -> NDArray[np.float32]:
        """The values as float32, in the entry's shape; exact for F32, F16 and BF16.

        Raises:
            ConfigError: the dtype is none of the three, or the file can't be read.
        """
        if self.dtype not in {"F32", "F16", "BF16"}:
            raise ConfigError(
                f"{self.file}: a norm in {self.dtype}; use a checkpoint that holds it in F32, F16 or BF16"
            )
        try:
            with self.file.open("rb") as file:
                file.seek(self.offset)
                raw = file.read(self.num_bytes)
        except OSError as error:
            raise ConfigError(f"can't read {self.file}: {error.strerror}") from error
        if len(raw) != self.num_bytes:
            raise _broken(self.file, "it got shorter since it was opened")
        if self.dtype == "BF16":
            values = (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32)
        else:
            values = np.frombuffer(raw, "<f4" if self.dtype == "F32" else "<f2").astype(np.float32)
        return values.reshape(self.shape)


def read_header(path: Path) -> dict[str, TensorEntry]:
    """Every tensor of one safetensors file, by name.

    Raises:
        ConfigError: the file is missing, cut short or no safetensors file.
    """
    try:
        with path.open("rb") as file:
            file_bytes = path.stat().st_size
            header_bytes = int.from_bytes(file.read(8), "little")
            if file_bytes < 8 or header_bytes > min(file_bytes - 8, _MAX_HEADER_BYTES):
                raise _broken(path, "its header is cut short")
            header = json.loads(file.read(header_bytes))
    except OSError as error:
        raise ConfigError(f"can't read {path}: {error.strerror}; download this file again") from error
    except (ValueError, RecursionError) as error:
        raise _broken(path, "its header is no JSON") from error
    if not isinstance(header, dict):
        raise _broken(path, "its header is no JSON object")
    header.pop("__metadata__", None)
    start = 8 + header_bytes
    return {name: _entry(path, name, item, start, file_bytes) for name, item in header.items()}


def _entry(path: Path, name: str, item: object, start: int, file_bytes: int) -> TensorEntry:
    """Check one line of the header; its offsets count from ``start``."""
    match item:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(begin), int(end)]}:
            pass
        case _:
            raise _broken(path, f"the entry of {name} lacks dtype, shape or data_offsets")
    if dtype not in _BITS:
        raise ConfigError(f"{path}: {name} has the unknown dtype {dtype}; use a checkpoint in F32, F16 or BF16")
    if not all(type(size) is int and size >= 0 for size in shape):
        raise _broken(path, f"the shape of {name} is {shape}")
    if not 0 <= begin <= end <= file_bytes - start:
        raise _broken(path, f"the values of {name} lie outside the file")
    if (end - begin) * 8 != prod(shape) * _BITS[dtype]:
        raise _broken(path, f"{name} has {end - begin} bytes, which is not {shape} of {dtype}")
    return TensorEntry(path, dtype, tuple(shape), end - begin, start + begin)


def read_json_object(path: Path) -> Mapping[str, object]:
    """A file that holds one JSON object.

    Raises:
        ConfigError: there is no such file, or it holds something else.
    """
    try:
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"can't read {path}: {error.strerror}; download this file again") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is no JSON; download this file again") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path} holds no JSON object; download this file again")
    return value


def _broken(path: Path, fact: str) -> ConfigError:
    return ConfigError(f"{path} is no whole safetensors file: {fact}; download it again")
