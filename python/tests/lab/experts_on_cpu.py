"""What vLLM lacks on CPUs for experts over data-parallel ranks. Named as `--worker-extension-cls`, workers load it.

vLLM's communicator for CPUs can't gather and scatter unequal parts, and its kernel takes each rank for one that has all
experts. The model, its routing and the steps that ranks take together are vLLM's own.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.distributed
from vllm.distributed.device_communicators.cpu_communicator import CpuCommunicator
from vllm.model_executor.layers.fused_moe.experts.cpu_moe import CPUUnquantizedExperts


class Ranks:
    """Nothing that is called: loading the module is all."""


def all_gather_unequal(
    self: Any, input_: torch.Tensor | list[torch.Tensor], dim: int = 0, sizes: list[int] | None = None
) -> torch.Tensor | list[torch.Tensor]:
    """Every rank's rows, one rank's after the other's."""
    if isinstance(input_, list):
        return [all_gather_unequal(self, one, dim, sizes) for one in input_]
    counts = sizes or [input_.shape[0]] * self.world_size
    mine = input_.new_zeros((max(counts), *input_.shape[1:]))
    mine[: input_.shape[0]] = input_
    parts = [torch.empty_like(mine) for _ in counts]
    torch.distributed.all_gather(parts, mine, group=self.device_group)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


def reduce_scatter_unequal(
    self: Any, input_: torch.Tensor, dim: int = -1, sizes: list[int] | None = None
) -> torch.Tensor:
    """The sum over all ranks, of which each keeps its rows."""
    counts = sizes or [input_.shape[0] // self.world_size] * self.world_size
    total = input_.clone()
    torch.distributed.all_reduce(total, group=self.device_group)
    start = sum(counts[: self.rank_in_group])
    return total[start : start + counts[self.rank_in_group]].clone()


def _with_own_experts(apply: Any) -> Any:
    @functools.wraps(apply)
    def applied(self: Any, **given: Any) -> None:
        own = given.get("expert_map")
        if own is not None:
            place = own[given["topk_ids"].long()]
            # what others have counts nothing here
            given["topk_weights"] = given["topk_weights"].masked_fill(place < 0, 0.0)
            given["topk_ids"] = place.clamp(min=0).to(given["topk_ids"].dtype)
        apply(self, **given)

    return applied


CpuCommunicator.all_gatherv = all_gather_unequal
CpuCommunicator.reduce_scatterv = reduce_scatter_unequal
CPUUnquantizedExperts.apply = _with_own_experts(CPUUnquantizedExperts.apply)
