"""What a model's ``config.json`` says about its shape."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from peer.tensor_files import read_json_object
from routing.errors import ConfigError

# Says how a copy was made or is loaded, not which model it is.
_NOT_IDENTITY = {"transformers_version", "dtype", "torch_dtype", "_name_or_path"}


class ModelConfig(Mapping[str, object]):
    """config.json as a mapping; its properties know the names that model families use.

    Raises:
        ConfigError: from a property, when the file doesn't say it as a positive whole number.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._values = read_json_object(path)

    def __getitem__(self, key: str) -> object:
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    @property
    def num_blocks(self) -> int:
        """Transformer blocks of the whole model."""
        return self._count("num_hidden_layers", "n_layer")

    @property
    def num_heads(self) -> int:
        """Query heads of a block."""
        return self._count("num_attention_heads", "n_head")

    @property
    def num_kv_heads(self) -> int:
        """Key and value heads of a block; as many as query heads when the file says nothing."""
        if self.get("num_key_value_heads") is None:
            return self.num_heads
        return self._count("num_key_value_heads")

    @property
    def head_dim(self) -> int:
        """Width of one head; hidden_size / num_heads when the file says nothing."""
        if self.get("head_dim") is not None:
            return self._count("head_dim")
        if self.hidden_size % self.num_heads:
            raise ConfigError(f"{self._path}: {self.num_heads} heads don't divide {self.hidden_size}; add head_dim")
        return self.hidden_size // self.num_heads

    @property
    def hidden_size(self) -> int:
        """Width of the hidden states between blocks."""
        return self._count("hidden_size", "n_embd")

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding."""
        return self._count("vocab_size")

    def canonical(self) -> bytes:
        """The same bytes for the same model, whatever order, spacing or library version wrote the file."""
        kept = {key: value for key, value in self.items() if key not in _NOT_IDENTITY}
        return json.dumps(kept, sort_keys=True, separators=(",", ":")).encode()

    def _count(self, *names: str) -> int:
        for name in names:
            value = self.get(name)
            if value is None:
                continue
            if type(value) is not int or value < 1:
                raise ConfigError(f"{self._path}: {name} is {value!r}, not a positive whole number; download it again")
            return value
        raise ConfigError(f"{self._path} has no {' or '.join(names)}; give a folder of a causal language model")
