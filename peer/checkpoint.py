"""A model's folder, known by its headers alone: what lies where, what it weighs, which model it is.

numpy and json only, so that a client or a planner can ask without loading torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from math import ceil
from pathlib import Path
from types import MappingProxyType

from peer.model_config import ModelConfig
from peer.tensor_files import TensorEntry, read_header, read_json_object
from routing.errors import ConfigError

_BLOCK = re.compile(r"(?:^|\.)(?:layers|h|blocks|block)\.([0-9]{1,6})\.")
_EMBEDDING = re.compile(r"(?:^|\.)(?:embed_tokens|wte|wpe|word_embeddings|embed_in)\.weight$")
_TOKEN_EMBEDDING = re.compile(r"(?:^|\.)(?:embed_tokens|wte|word_embeddings|embed_in)\.weight$")
_FINAL_NORM = re.compile(r"^(?:\w+\.)?(?:norm|ln_f|final_layer_norm|final_layernorm|norm_f)\.(?:weight|bias)$")
_HEAD = re.compile(r"(?:^|\.)(?:lm_head|embed_out)\.(?:weight|bias)$")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A folder with config.json, tokenizer.json and, unless it is a client's, safetensors.

    ``tensors`` is empty for a folder without weights; what needs weights then raises ``ConfigError``.
    """

    folder: Path
    config: ModelConfig
    tensors: Mapping[str, TensorEntry]

    @classmethod
    def open(cls, folder: Path) -> Checkpoint:
        """Read config.json and the header of every safetensors file that belongs to the model.

        Raises:
            ConfigError: a file is missing or malformed; the message names it and says what to do.
        """
        if not folder.is_dir():
            raise ConfigError(f"{folder} is no folder; give the folder that holds the model's config.json")
        return cls(folder, ModelConfig(folder / "config.json"), MappingProxyType(_read_tensors(folder)))

    @staticmethod
    def block_of(name: str) -> int | None:
        """The block that a tensor belongs to: 12 for ``model.layers.12.mlp.up_proj.weight``; None at the ends."""
        match = _BLOCK.search(name)
        return int(match[1]) if match else None

    def block_bytes(self, block: int, element_bytes: float) -> int:
        """Memory of one block's weights, held with ``element_bytes`` bytes an element (0.5 for 4 bits).

        Raises:
            ConfigError: the folder has no weights of that block.
        """
        entries = [entry for name, entry in self.tensors.items() if self.block_of(name) == block]
        if not entries:
            raise ConfigError(f"{self.folder} has no weights of block {block}; download the missing files")
        return _held_bytes(entries, element_bytes)

    def end_bytes(self, first: bool, last: bool, element_bytes: float) -> int:
        """Memory that a span takes beyond its blocks: the embedding if first, final norm and head if last.

        Where head and embedding are tied, the last span has its own copy of the embedding, also when it is the first.

        Raises:
            ConfigError: the folder has no such weights.
        """
        entries: list[TensorEntry] = []
        if first:
            entries += self._at_ends(_EMBEDDING, "embedding")
        if last:
            is_tied = not any(_HEAD.search(name) for name in self.tensors)
            entries += self._at_ends(_FINAL_NORM, "final norm")
            entries += self._at_ends(_TOKEN_EMBEDDING, "embedding") if is_tied else self._at_ends(_HEAD, "head")
        return _held_bytes(entries, element_bytes)

    def kv_bytes_per_token(self, num_blocks: int, element_bytes: float) -> int:
        """Keys and values of one token in ``num_blocks`` blocks."""
        return ceil(2 * num_blocks * self.config.num_kv_heads * self.config.head_dim * element_bytes)

    def weights_hash(self) -> str:
        """8 hex digits of the final norm's values: base and tuned models of one shape differ there.

        The stored dtype plays no part where the values are the same.

        Raises:
            ConfigError: the folder has no final norm, or in a dtype that float32 can't hold.
        """
        norms = self._at_ends(_FINAL_NORM, "final norm", ".weight")
        if len(norms) != 1:
            raise ConfigError(f"{self.folder} has {len(norms)} final norms; give a folder of one causal language model")
        return sha256(norms[0].read_float32().astype("<f4").tobytes()).hexdigest()[:8]

    def config_hash(self) -> str:
        """8 hex digits of config.json (canonical) and tokenizer.json: what a client without weights can tell.

        Raises:
            ConfigError: there is no tokenizer.json.
        """
        path = self.folder / "tokenizer.json"
        try:
            tokenizer = path.read_bytes()
        except OSError as error:
            raise ConfigError(f"can't read {path}: {error.strerror}; download this file too") from error
        return sha256(self.config.canonical() + tokenizer).hexdigest()[:8]

    def _at_ends(self, pattern: re.Pattern[str], what: str, suffix: str = "") -> list[TensorEntry]:
        """Tensors outside the blocks whose name matches."""
        found = [
            entry
            for name, entry in self.tensors.items()
            if self.block_of(name) is None and pattern.search(name) and name.endswith(suffix)
        ]
        if not found:
            raise ConfigError(f"{self.folder} has no weights of the {what}; download the model's *.safetensors files")
        return found


def _held_bytes(entries: Iterable[TensorEntry], element_bytes: float) -> int:
    return ceil(sum(entry.num_elements for entry in entries) * element_bytes)


def _read_tensors(folder: Path) -> dict[str, TensorEntry]:
    """One file, else the shards of the index, else every safetensors file: the order in which others look."""
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        return read_header(single)
    if index.is_file():
        return _read_shards(folder, index)
    tensors: dict[str, TensorEntry] = {}
    for path in sorted(folder.glob("*.safetensors")):
        for name, entry in read_header(path).items():
            if name in tensors:
                raise ConfigError(f"{name} lies in {tensors[name].file.name} and in {path.name}: remove one of the two")
            tensors[name] = entry
    return tensors


def _read_shards(folder: Path, index: Path) -> dict[str, TensorEntry]:
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict):
        raise ConfigError(f"{index} has no weight_map; download it again")
    headers: dict[str, dict[str, TensorEntry]] = {}
    tensors: dict[str, TensorEntry] = {}
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or shard in {"", ".", ".."} or Path(shard).name != shard:
            raise ConfigError(f"{index}: {shard!r} is no name of a file in its folder; download the index again")
        if shard not in headers:
            headers[shard] = read_header(folder / shard)
        if name not in headers[shard]:
            raise ConfigError(f"{folder / shard} lacks {name}, which the index says it holds; download both again")
        tensors[name] = headers[shard][name]
    return tensors
