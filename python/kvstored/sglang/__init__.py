"""kvstored as a storage backend of SGLang's HiCache.

`--hicache-storage-backend dynamic --hicache-storage-backend-extra-config '{"backend_name": "kvstored", "module_path":
"kvstored.sglang", "class_name": "KvstoredHiCache", "interface_v1": 1, ...}'`
"""

from kvstored.sglang.backend import KvstoredHiCache

__all__ = ["KvstoredHiCache"]
