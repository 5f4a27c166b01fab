"""A worker's side of prompts that decode instances follow while they are computed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from kvstored.vllm.handoff.configuration import HandoffSettings
from kvstored.vllm.handoff.metadata import OverlapStep

_WITHDRAW_S = 5.0
"""How long the end of reads is waited for. Whoever still reads then finds out that it can't use what it read."""


class Following:
    """Lives in each process that computes. Every method is called from the worker's thread."""

    def __init__(
        self,
        native: Any,
        settings: HandoffSettings,
        attempt: Callable[..., Exception | None],
        layer_names: Sequence[str],
    ) -> None:
        """Takes a `kvstored._native.Handoff`, the names of its layers, and what makes calls that may fail."""
        self._native = native
        self._lease_s = settings.lease_seconds
        self._attempt = attempt
        self._layers = {name: index for index, name in enumerate(layer_names)}
        self._announced: set[str] = set()
        self._ended: set[str] = set()
        """Announced and released before their computation's end."""
        self._computing: list[tuple[str, int]] = []
        self.step = 0
        """The last step that was begun."""

    def begin(self, step: OverlapStep) -> None:
        """Before anything of a step is computed or loaded: blocks that are taken back are overwritten then."""
        self.step = step.number or self.step
        self._computing = []
        if not step:
            return
        if step.withdrawn:
            self._announced.difference_update(step.withdrawn)
            self._ended.difference_update(step.withdrawn)
            self._attempt("take blocks back", self._native.withdraw, step.withdrawn, _WITHDRAW_S)
        for name in step.announced:
            if self._attempt("announce a prompt", self._native.announce, name, self._lease_s) is None:
                self._announced.add(name)
        for name, block_ids in step.extended.items():
            self._attempt("announce blocks", self._native.extend, name, block_ids)
        if step.settled:
            self._attempt("tell of blocks", self._native.advance, list(step.settled.items()), None)
        self._computing = list(step.computing.items())

    def layer_done(self, layer_name: str) -> None:
        """A layer has been through the step's computation."""
        if self._computing and (layer := self._layers.get(layer_name)) is not None:
            self._attempt("tell of blocks", self._native.advance, self._computing, layer)

    def complete(self, name: str, lease_s: float) -> bool:
        """A prompt is computed: whether its blocks have to stay until `released` is told of it."""
        announced, ended = name in self._announced, name in self._ended
        self._announced.discard(name)
        self._ended.discard(name)
        if announced and not ended:
            # one that ended just now is still to be told
            self._attempt("keep blocks", self._native.complete, name, lease_s)
        return announced and not ended

    def released(self, name: str) -> bool:
        """Nobody reads the blocks under a name any more. Whether the prompt is computed still."""
        if name in self._announced:
            self._ended.add(name)
            return True
        return False
