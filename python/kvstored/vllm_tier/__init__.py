"""kvstored as a secondary tier of vLLM's OffloadingConnector.

`{"type": "KvstoredTier", "module_path": "kvstored.vllm_tier", "pipeline": "Cache|Posix", "storage_backends": "..."}`
"""

from kvstored.vllm_tier.tier import KvstoredTier

__all__ = ["KvstoredTier"]
