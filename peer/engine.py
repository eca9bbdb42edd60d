"""The forward pass: waves of many sessions in, rows or verdicts out. Everything above knows neither device nor dtype.

SpanSession.take(wave) -> Step        on the event loop: the tree grows, what can't be done is refused
Engine.run([Step]) -> [Outcome]   on the compute thread: caches, one ragged pass, verification at the last hop
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from peer.attention import Segment
from peer.kv_cache import KVCache
from peer.sampling import sample
from peer.spans import SpanModel
from peer.verification import Walk, walk
from routing.domain import SamplingParams
from routing.tree import Node, TokenTree


@dataclass(slots=True)
class SpanSession:
    """What a span holds of one session: its tree and its keys and values."""

    cache: KVCache
    params: SamplingParams
    tree: TokenTree

    def take(self, commit: int, start: int, nodes: Sequence[Node], rows: Tensor | None) -> Step:
        """Let a wave change the tree, and note what the pass has to do for it.

        Args:
            commit: the node up to which the tree is final.
            start: where the verifier's walk begins; 0 for no walk.
            nodes: new ones, parents before children.
            rows: [nodes, hidden] from the span before; None at the first span.

        Raises:
            ValueError: an unknown commit or parent, a start outside the wave, or no room. The session must end then.
        """
        if start and start not in {node.id for node in nodes}:
            raise ValueError(f"the walk is to start at node {start}, which is not in the wave")
        first = self.tree.num_committed
        slot_of = {node.id: first + index for index, node in enumerate(self.tree.open_nodes)}
        committed = self.tree.commit(commit)
        kept = [slot_of[node] for node in committed]
        kept += [slot_of[node.id] for node in self.tree.open_nodes]
        for node in nodes:
            self.tree.add(node)
        if first + len(kept) + len(nodes) > self.cache.max_tokens:
            raise ValueError(f"the session is longer than the {self.cache.max_tokens} tokens that it was granted")
        return Step(self, first, kept, start, tuple(nodes), rows)


@dataclass(frozen=True, slots=True)
class Step:
    """One session's part of a pass.

    Attributes:
        session: whose it is.
        first: the cache's slots below this one stay as they are.
        kept: slots from ``first`` on that stay, in their new order.
        start: where the walk begins; 0 for none.
        nodes: those to compute.
        rows: their input [nodes, hidden], or None for the embedding of their tokens.
    """

    session: SpanSession
    first: int
    kept: Sequence[int]
    start: int
    nodes: tuple[Node, ...]
    rows: Tensor | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a pass gave one step.

    Attributes:
        rows: output [nodes, hidden] for the next hop; None after the last block.
        walk: the verdict of the last span, if a walk was asked for.
        failure: why the step gave nothing; its session can't go on.
    """

    rows: Tensor | None = None
    walk: Walk | None = None
    failure: str | None = None


class Engine:
    """Runs the passes of one span, one at a time.

    Args:
        model: the span.
    """

    def __init__(self, model: SpanModel) -> None:
        self.model = model

    def new_session(self, params: SamplingParams, max_tokens: int) -> SpanSession:
        """An empty session of at most so many tokens."""
        return SpanSession(self.model.new_cache(max_tokens), params, TokenTree())

    @torch.inference_mode()
    def run(self, steps: Sequence[Step]) -> list[Outcome]:
        """One forward pass over the rows of all steps, each of another session.

        Raises:
            ValueError: the steps are more than one of a session.
        """
        if len({id(step.session) for step in steps}) != len(steps):
            raise ValueError("a session can have only one step in a pass")
        segments: list[Segment] = []
        positions: list[Tensor] = []
        first = 0
        for step in steps:
            segment, own = self._segment(step, first)
            segments.append(segment)
            positions.append(own)
            first += len(step.nodes)
        rows = self.model.forward(self._inputs(steps), torch.cat(positions), segments)
        return [
            self._outcome(step, rows[segment.first : segment.first + segment.num_rows])
            for step, segment in zip(steps, segments, strict=True)
        ]

    def _segment(self, step: Step, first_row: int) -> tuple[Segment, Tensor]:
        """The step's place in the pass, and the positions [nodes] of its rows."""
        tree, cache, device = step.session.tree, step.session.cache, self.model.device
        cache.keep(step.first, step.kept)
        cache.reserve(len(step.nodes))
        open_nodes = tree.open_nodes
        slots = [*range(tree.num_committed), *(tree.position(node.id) for node in open_nodes)]
        positions = torch.tensor(slots, dtype=torch.long, device=device)
        above = tree.ancestor_mask()[-len(step.nodes) :]
        mask: Tensor | None = None
        if not above.all():
            mask = torch.ones((len(step.nodes), len(slots)), dtype=torch.bool, device=device)
            mask[:, tree.num_committed :] = torch.from_numpy(above).to(device)
        return Segment(first_row, len(step.nodes), cache, mask, positions), positions[-len(step.nodes) :]

    def _inputs(self, steps: Sequence[Step]) -> Tensor:
        """[rows, hidden] of all steps."""
        if self.model.is_first:
            tokens = [node.token for step in steps for node in step.nodes]
            return self.model.embed(torch.tensor(tokens, dtype=torch.long, device=self.model.device))
        given = [step.rows for step in steps if step.rows is not None]
        return torch.cat(given).to(device=self.model.device, dtype=self.model.dtype)

    def _outcome(self, step: Step, rows: Tensor) -> Outcome:
        if not self.model.is_last:
            return Outcome(rows=rows)
        if not step.start:
            return Outcome()
        params = step.session.params
        begin = next(index for index, node in enumerate(step.nodes) if node.id == step.start)
        logits = self.model.logits(rows[begin:]).cpu().numpy()
        row_of = {node.id: index for index, node in enumerate(step.nodes[begin:])}
        try:
            return Outcome(
                walk=walk(
                    step.session.tree,
                    step.start,
                    lambda node, position: sample(logits[row_of[node]], params, position),
                )
            )
        except ValueError as error:
            return Outcome(failure=str(error))
