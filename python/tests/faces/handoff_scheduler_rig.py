"""vLLM's own scheduler with our connector, and workers whose reports the test writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from vllm import SamplingParams
from vllm.config import CacheConfig, DeviceConfig, KVTransferConfig, ModelConfig, SchedulerConfig, VllmConfig
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.outputs import KVConnectorOutput, ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus
from vllm.v1.structured_output import StructuredOutputManager

from kvstored.vllm.handoff.metadata import HandoffStep

BLOCK = 32
BLOCKS = 24
TOKENS = 3 * BLOCK + 5


class Rig:
    """vLLM's scheduler with our connector; `extra`: further settings of it."""

    def __init__(
        self,
        model: Path,
        role: str,
        *,
        prefix_caching: bool = False,
        step_tokens: int = BLOCK * BLOCKS // 2,
        **extra: Any,
    ) -> None:
        model_config = ModelConfig(model=str(model), dtype="float32", max_model_len=BLOCK * BLOCKS // 2)
        config = VllmConfig(
            model_config=model_config,
            cache_config=CacheConfig(block_size=BLOCK, enable_prefix_caching=prefix_caching),
            scheduler_config=SchedulerConfig(
                max_num_seqs=4,
                max_num_batched_tokens=step_tokens,
                enable_chunked_prefill=True,
                max_model_len=BLOCK * BLOCKS // 2,
                is_encoder_decoder=False,
                async_scheduling=False,
            ),
            device_config=DeviceConfig("cpu"),
            kv_transfer_config=KVTransferConfig(
                kv_connector="MooncakeConnectorV1",
                kv_connector_module_path="kvstored.vllm",
                kv_role=role,
                kv_port=20_001,
                kv_connector_extra_config={"prefill": {"tp_size": 1}, "decode": {"tp_size": 1}, **extra},
            ),
        )
        config.cache_config.num_gpu_blocks = BLOCKS
        spec = FullAttentionSpec(block_size=BLOCK, num_kv_heads=1, head_size=64, dtype=torch.float32)
        kv_cache_config = KVCacheConfig(BLOCKS, [], [KVCacheGroupSpec(["layer"], spec)])
        self.scheduler = Scheduler(
            vllm_config=config,
            kv_cache_config=kv_cache_config,
            structured_output_manager=StructuredOutputManager(config),
            block_size=BLOCK,
            log_stats=True,
        )
        init_none_hash(sha256)
        self._hasher = get_request_block_hasher(BLOCK, sha256)

    def add(self, name: str, params: dict[str, Any], *, tokens: int = TOKENS, max_tokens: int = 4) -> None:
        sampling = SamplingParams(
            max_tokens=max_tokens, ignore_eos=True, extra_args={"kv_transfer_params": dict(params)}
        )
        sampling.update_from_generation_config({}, eos_token_id=2)
        self.scheduler.add_request(Request(name, list(range(4, 4 + tokens)), sampling, None, block_hasher=self._hasher))

    def schedule(self) -> tuple[SchedulerOutput, HandoffStep]:
        output = self.scheduler.schedule()
        assert isinstance(output.kv_connector_metadata, HandoffStep)
        return output, output.kv_connector_metadata

    def finish(self, output: SchedulerOutput, **reported: Any) -> list[Any]:
        """A step's end: requests whose prompt is through got a token, and workers report that. What went to clients."""
        names = list(output.num_scheduled_tokens)
        known = [self.scheduler.requests.get(name) for name in names]
        through = [one is None or one.num_computed_tokens >= one.num_prompt_tokens for one in known]
        runner = ModelRunnerOutput(
            req_ids=names,
            req_id_to_index={name: index for index, name in enumerate(names)},
            sampled_token_ids=[[9] if one else [] for one in through],
            kv_connector_output=KVConnectorOutput(**reported),
        )
        outputs = self.scheduler.update_from_output(output, runner)
        return [one for client in outputs.values() for one in client.outputs]

    @property
    def free_blocks(self) -> int:
        return self.scheduler.kv_cache_manager.block_pool.get_num_free_blocks()

    def abort(self, name: str) -> None:
        self.scheduler.finish_requests(name, RequestStatus.FINISHED_ABORTED)
