"""kvstored as a store of UCM: `ucm_connector_module_path: kvstored.ucm` beside the name `UcmPipelineStore`."""

from kvstored.ucm.store import KvstoredStore, UcmPipelineStore

__all__ = ["KvstoredStore", "UcmPipelineStore"]
