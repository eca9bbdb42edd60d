"""A GGUF's metadata and tensors, with its errors mapped to ours at this one door.

Source of the layout: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import gguf
import numpy as np
from numpy.typing import NDArray

from routing.errors import ConfigError

_T = TypeVar("_T", str, int, float)
_FIRST_PART = re.compile(r"(.*)-[0-9]{5}-of-([0-9]{5})\.gguf")


class GgufFile:
    """One GGUF, or all parts of one that is split; the metadata lies in the first part.

    Raises:
        ConfigError: a part is missing, cut short or no GGUF.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._readers = [_read(part) for part in _parts(path)]

    def __contains__(self, key: str) -> bool:
        return key in self._readers[0].fields

    def get(self, key: str, kind: type[_T], default: _T | None = None) -> _T:
        """A single value of the metadata.

        Raises:
            ConfigError: it is of another kind, or missing and there is no ``default``.
        """
        field = self._readers[0].fields.get(key)
        if field is None and default is not None:
            return default
        value = None if field is None else field.contents()
        if type(value) is not kind:
            raise ConfigError(f"{self.path}: {key} is {value!r}, not of type {kind.__name__}; give another GGUF")
        return value

    def count(self, key: str, default: int | None = None) -> int:
        """A positive whole number of the metadata.

        Raises:
            ConfigError: it is none, or missing and there is no ``default``.
        """
        value = self.get(key, int, default)
        if value < 1:
            raise ConfigError(f"{self.path}: {key} is {value}, not at least 1; give another GGUF")
        return value

    def get_list(self, key: str, kind: type[_T]) -> list[_T]:
        """An array of the metadata.

        Raises:
            ConfigError: it is missing or of another kind.
        """
        field = self._readers[0].fields.get(key)
        values = None if field is None else field.contents()
        if not isinstance(values, list) or not all(type(value) is kind for value in values):
            raise ConfigError(f"{self.path}: {key} is no array of {kind.__name__}; give another GGUF")
        return values

    def tensor_names(self) -> set[str]:
        """Names of all tensors, as the file has them."""
        return {tensor.name for reader in self._readers for tensor in reader.tensors}

    def tensors(self) -> Iterator[tuple[str, NDArray[np.float32]]]:
        """Every tensor's name and its values as float32, in the file's shape.

        Raises:
            ConfigError: a tensor is quantized in a way that is not known.
        """
        for reader in self._readers:
            for tensor in reader.tensors:
                try:
                    values = gguf.dequantize(tensor.data, tensor.tensor_type)
                except NotImplementedError as error:
                    kind = tensor.tensor_type.name
                    raise ConfigError(f"{self.path}: {tensor.name} is in {kind}; give a GGUF in Q8_0 or F16") from error
                yield tensor.name, np.ascontiguousarray(values, np.float32)


def _parts(path: Path) -> list[Path]:
    """The file, or all parts that its name counts (NAME-00001-of-00003.gguf)."""
    match = _FIRST_PART.fullmatch(path.name)
    if match is None:
        return [path]
    return [path.with_name(f"{match[1]}-{number:05}-of-{match[2]}.gguf") for number in range(1, int(match[2]) + 1)]


def _read(path: Path) -> gguf.GGUFReader:
    try:
        return gguf.GGUFReader(path)
    except OSError as error:
        raise ConfigError(f"can't read {path}: {error.strerror}; download this file") from error
    except (ValueError, IndexError, KeyError, OverflowError) as error:
        raise ConfigError(f"{path} is no whole GGUF ({error}); download it again") from error
