"""What tests, benches and demonstrations need to run real engines on this machine, and to leave nothing behind."""

from .completions import MODEL_NAME, Completion, CompletionError, complete
from .daemon import Daemon, daemon_binary
from .disaggregated import MooncakePair
from .in_process_engine import EngineError, Generation, InProcessEngine
from .metrics import Metrics, PrefixCache, Sample
from .models import make_model
from .nursery import EngineNursery
from .ports import free_port
from .processes import Tree, descendants, is_alive, resident_bytes, start_leashed
from .prompts import prompt, text
from .vllm_environment import vllm_environment, vllm_python
from .vllm_server import VllmServer

__all__ = [
    "MODEL_NAME",
    "Completion",
    "CompletionError",
    "Daemon",
    "EngineError",
    "EngineNursery",
    "Generation",
    "InProcessEngine",
    "Metrics",
    "MooncakePair",
    "PrefixCache",
    "Sample",
    "Tree",
    "VllmServer",
    "complete",
    "daemon_binary",
    "descendants",
    "free_port",
    "is_alive",
    "make_model",
    "prompt",
    "resident_bytes",
    "start_leashed",
    "text",
    "vllm_environment",
    "vllm_python",
]
