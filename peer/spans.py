"""A span: the transformers model itself, cut to the blocks [start, end), with only their weights loaded."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from peer.admission import Served
from peer.attention import NAME, Segment
from peer.checkpoint import Checkpoint
from peer.kv_cache import KVCache
from peer.torch_formats import torch_dtype
from routing.domain import ModelId, PeerId, Span
from routing.errors import ConfigError

GPU_CHUNK_TOKENS = 1024


class SpanModel:
    """Some blocks of a model; the first span has the embedding too, the last one the final norm and the head.

    Args:
        folder: config.json and safetensors.
        span: the blocks.
        weights: format of the weights, and of what is computed with them.
        rows: format of the rows that go to the next span; None for that of the weights.
        kv: format of keys and values, and of attention; None for that of the weights.
        device: where all this lies and is computed.

    Attributes:
        max_text: tokens that a text may have where rotary embeddings change with the longest text of a pass: one that
            has more would change the others. None if they never change.

    Raises:
        ConfigError: the folder is no model that can be cut, or has not all of the span's weights.
    """

    def __init__(
        self,
        folder: Path,
        span: Span,
        weights: str = "float32",
        rows: str | None = None,
        kv: str | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        checkpoint = Checkpoint.open(folder)
        self.num_blocks = checkpoint.config.num_blocks
        if not Span(0, self.num_blocks).covers(span):
            raise ConfigError(f"{folder} has the blocks 0:{self.num_blocks}; {span} is not among them")
        self.span = span
        self.dtype = torch_dtype(weights)
        self.rows_dtype = torch_dtype(rows or weights)
        self.kv_dtype = torch_dtype(kv or weights)
        self.device = torch.device(device)
        self.is_first = span.start == 0
        self.is_last = span.end == self.num_blocks
        self._model = _cut_model(folder, span, self.num_blocks, self.dtype)
        _load_weights(self._model, checkpoint, span, self.dtype, self.device)
        self._base: Any = self._model.model
        self._base.rotary_emb = type(self._base.rotary_emb)(config=self._model.config).to(self.device)
        self._model.eval()
        if unfilled := [name for name, buffer in self._model.named_buffers() if buffer.is_meta]:
            raise ConfigError(
                f"{folder}: {unfilled[0]} is not in the files of a {self._model.config.model_type} model, "
                "and this version can't compute it"
            )
        config = self._model.config
        self.hidden_size = int(config.hidden_size)
        self.vocab_size = int(config.vocab_size)
        self.max_text = _max_text(config)
        self._num_kv_heads = int(config.num_key_value_heads)
        self._first_layer = 0  # as the attention modules count: from the first block that is loaded
        self._head_dim = int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)

    def served(self, peer: PeerId, model: ModelId, weights_class: str, num_kv_tokens: int) -> Served:
        """What a hop has to know of these blocks, served by this peer under this name."""
        return Served(
            peer=peer,
            model=model,
            num_blocks=self.num_blocks,
            span=self.span,
            hidden_size=self.hidden_size,
            vocab_size=self.vocab_size,
            weights_class=weights_class,
            num_kv_tokens=num_kv_tokens,
            max_text=self.max_text,
        )

    def part(self, span: Span) -> SpanModel:
        """Some of this span's blocks as a span of their own; it shares the weights.

        Raises:
            ConfigError: they are not all here.
        """
        if not self.span.covers(span):
            raise ConfigError(f"the blocks {span} are not all in {self.span}")
        first = span.start - self.span.start
        part = copy.copy(self)
        part.span = span
        part.is_first = span.start == 0
        part.is_last = span.end == self.num_blocks
        part._first_layer = self._first_layer + first
        base = copy.copy(self._base)
        base._modules = dict(self._base._modules)
        base.config = copy.copy(self._base.config)
        _keep_blocks(base, first, len(span), part.is_last)
        part._base = base
        return part

    def new_cache(self, max_tokens: int) -> KVCache:
        """An empty cache for one session."""
        return KVCache(
            self._first_layer,
            len(self.span),
            self._num_kv_heads,
            self._head_dim,
            max_tokens,
            max_tokens if self.device.type == "cpu" else GPU_CHUNK_TOKENS,
            self.kv_dtype,
            self.device,
        )

    def embed(self, tokens: Tensor) -> Tensor:
        """Token ids, int64 [rows], as input rows [rows, hidden]. Only the first span can."""
        return cast(Tensor, self._base.embed_tokens(tokens))

    def forward(self, rows: Tensor, positions: Tensor, segments: Sequence[Segment]) -> Tensor:
        """Run the blocks once over the rows of several sessions.

        Args:
            rows: [rows, hidden], the embedding's or the span's before.
            positions: int64 [rows], of each row in its own text.
            segments: whose rows they are, in order.

        Returns:
            [rows, hidden]; after the last block the final norm has been applied.
        """
        output = self._base(inputs_embeds=rows[None], position_ids=positions[None], use_cache=False, segments=segments)
        return cast(Tensor, output.last_hidden_state)[0]

    def logits(self, rows: Tensor) -> Tensor:
        """Output rows [rows, hidden] of the last span as float32 [rows, vocab]."""
        logits = cast(Tensor, self._model.lm_head(rows)).float()
        cap = getattr(self._model.config, "final_logit_softcapping", None)
        return logits if cap is None else torch.tanh(logits / cap) * cap


def _max_text(config: PreTrainedConfig) -> int | None:
    """The longest text for which the frequencies of rotary embeddings are those of a short one; None for any."""
    parameters: dict[str, Any] = getattr(config, "rope_parameters", None) or {}
    limits: list[int] = []
    for own in [parameters] if "rope_type" in parameters else parameters.values():  # one for all, or by kind of block
        kind = own.get("rope_type", "default")
        if kind == "longrope":
            limits.append(int(own["original_max_position_embeddings"]))
        elif "dynamic" in kind:
            limits.append(int(config.max_position_embeddings))
    return min(limits, default=None)


def _cut_model(folder: Path, span: Span, num_blocks: int, dtype: torch.dtype) -> PreTrainedModel:
    """The model without weights, with the span's blocks alone."""
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, attn_implementation=NAME, dtype=dtype)
    except (ValueError, OSError, KeyError) as error:
        raise ConfigError(f"{folder}: transformers can't build this model: {error}") from None
    base = getattr(model, "model", None)
    layers = getattr(base, "layers", None)
    kinds = set(getattr(config, "layer_types", None) or ())
    if base is None or layers is None or len(layers) != num_blocks or not hasattr(base, "rotary_emb"):
        raise ConfigError(f"{folder}: a {config.model_type} model can't be cut into spans by this version")
    if not kinds <= {"full_attention", "sliding_attention"}:
        raise ConfigError(
            f"{folder}: {config.model_type} has blocks that are no plain attention; they can't be verified"
        )
    _keep_blocks(base, span.start, len(span), span.end == num_blocks)
    for index, layer in enumerate(base.layers):
        layer.self_attn.layer_idx = index
    if span.start > 0:
        base.embed_tokens = nn.Identity()
    if span.end < num_blocks:
        model.lm_head = nn.Identity()
    return cast(PreTrainedModel, model)


def _keep_blocks(base: nn.Module, first: int, count: int, is_last: bool) -> None:
    """Keep so many blocks of a transformers model, with what its config says of them; the norm only behind the last."""
    config: Any = base.config
    base.layers = nn.ModuleList(list(cast(nn.ModuleList, base.layers))[first : first + count])
    config.num_hidden_layers = count
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[first : first + count]
    if not is_last:
        base.norm = nn.Identity()


def _load_weights(
    model: PreTrainedModel, checkpoint: Checkpoint, span: Span, dtype: torch.dtype, device: torch.device
) -> None:
    """Fill the cut model; every parameter that it has must be in the checkpoint."""
    weights: dict[str, Tensor] = {}
    by_file: dict[Path, list[tuple[str, str]]] = {}
    for name in model.state_dict():
        source = _name_in_checkpoint(name, span)
        if source == "lm_head.weight" and source not in checkpoint.tensors:
            source = "model.embed_tokens.weight"  # tied
        if source not in checkpoint.tensors:
            raise ConfigError(
                f"{checkpoint.folder} lacks {source}, which the blocks {span} need: the download is not whole, or "
                f"{model.config.model_type} keeps its weights under other names than transformers' model has them"
            )
        by_file.setdefault(checkpoint.tensors[source].file, []).append((name, source))
    for file, names in by_file.items():
        with safe_open(file, framework="pt", device=str(device)) as tensors:
            for name, source in names:
                weights[name] = tensors.get_tensor(source).to(dtype)
    try:
        model.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        raise ConfigError(f"{checkpoint.folder}: the weights do not fit config.json: {error}") from None


def _name_in_checkpoint(name: str, span: Span) -> str:
    """``model.layers.0.x`` of the span as the whole model calls it."""
    parts = name.split(".")
    if parts[:2] == ["model", "layers"]:
        parts[2] = str(int(parts[2]) + span.start)
    return ".".join(parts)
