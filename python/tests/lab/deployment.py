"""Prefill apart from decode on this machine: a master, a daemon, vLLM instances of both roles, a proxy before them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from .completions import Completion, complete
from .daemon import Daemon
from .deployment_files import (
    MASTER_FLAGS,
    Group,
    decode_transfer,
    prefill_transfer,
    write_mooncake,
    write_ucm,
)
from .metrics import Metrics
from .ports import free_port, free_ports
from .services import Master, Proxy, wait_until
from .vllm_server import VllmServer

CONCURRENCY = 16
MOVED_BYTES = "vllm:kvstored_handoff_pulled_bytes_total"
FAILED_PULLS = "vllm:kvstored_handoff_failed_pulls_total"
HELD_BLOCKS = "vllm:kvstored_handoff_held_blocks"
_CACHE = "1GiB"
_STORAGE = "8GiB"

ENGINE_ENVIRONMENT = {
    # more instances than cores
    "OMP_NUM_THREADS": "1",
    # workers may load a module of ours
    "PYTHONPATH": str(Path(__file__).parents[1]),
}


@dataclass(frozen=True)
class Scenario:
    """Which model, in how many instances of which shape. With experts, each rank has some of them."""

    name: str
    prefill: Group
    decode: Group
    family: str = "llama"
    arguments: tuple[str, ...] = ("--no-enable-expert-parallel",)


SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario("dense", Group(instances=2), Group(instances=2)),
        Scenario(
            "moe",
            Group(data_parallel=2),
            Group(data_parallel=2),
            family="experts",
            arguments=("--enable-expert-parallel", "--worker-extension-cls", "lab.experts_on_cpu.Ranks"),
        ),
        Scenario("hetero-2-1", Group(tensor_parallel=2), Group(tensor_parallel=1)),
        Scenario("hetero-1-2", Group(tensor_parallel=1), Group(tensor_parallel=2)),
    )
}


def server_arguments(scenario: Scenario) -> list[str]:
    """Flags of every instance, also of one that has both roles."""
    return [
        *scenario.arguments,
        *("--seed", "1024"),
        *("--max-num-batched-tokens", "8000"),
        "--trust-remote-code",
        *("--max-num-seqs", "4"),
    ]


@dataclass(frozen=True)
class Counts:
    """Since the instances started, but for what is now."""

    own_hits: int
    """Prompt tokens found in the prefix caches of the prefill instances themselves."""
    stored_hits: int
    """Prompt tokens that prefill instances found in the daemon."""
    spared_tokens: int
    """Prompt tokens that decode instances didn't compute: they pulled them, or had them from an earlier prompt."""
    moved_bytes: int
    """What decode instances pulled."""
    failed_pulls: int
    """Prompts of which decode instances had to compute something after all."""
    held_blocks: int
    """Blocks that prefill instances keep for decode instances now."""
    requests: int
    """Requests that are under way now, in all instances."""


class Deployment:
    """All of it. A context manager that starts it and always stops it.

    model: folder of the model. folder: for configurations, logs and the daemon's storage; its path must be short.
    protocol: of mooncake.json. kv_cache_bytes: of each instance's own blocks. handoff: settings of MooncakeConnectorV1
    beside the sizes. cache: settings of UCMConnector beside its file. load_failure: vLLM's `kv_load_failure_policy`,
    its default if None. proxy_arguments: flags of the proxy beside the instances' addresses.
    """

    def __init__(
        self,
        scenario: Scenario,
        model: Path,
        *,
        folder: Path,
        binary: Path | None = None,
        protocol: str = "tcp",
        max_model_tokens: int = 17_000,
        kv_cache_bytes: int = 256 << 20,
        handoff: Mapping[str, Any] | None = None,
        cache: Mapping[str, Any] | None = None,
        load_failure: str | None = None,
        proxy_arguments: Sequence[object] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.scenario = scenario
        self.model = model
        self.folder = folder
        self._options = {"max_model_tokens": max_model_tokens, "kv_cache_bytes": kv_cache_bytes}
        self._handoff = dict(handoff or {})
        self._cache = dict(cache or {})
        self._policy = {} if load_failure is None else {"kv_load_failure_policy": load_failure}
        self.daemon = Daemon(binary=binary, folder=folder, cache_capacity=_CACHE, posix_capacity=_STORAGE)
        self.master = Master(log=folder / "master.log", arguments=MASTER_FLAGS, binary=binary)
        mooncake = write_mooncake(folder, self.master.rpc_port, protocol)
        self._environment = {
            "MOONCAKE_CONFIG_PATH": str(mooncake),
            **self.daemon.client_environment,
            **(environment or {}),
            **ENGINE_ENVIRONMENT,
        }
        self._ucm = write_ucm(folder, self.daemon.storage)
        self.prefill = list(self._servers("prefill", scenario.prefill))
        self.decode = list(self._servers("decode", scenario.decode))
        ports = [[server.port for server in servers] for servers in (self.prefill, self.decode)]
        self.proxy = Proxy(*ports, log=folder / "proxy.log", arguments=proxy_arguments, binary=binary)

    @property
    def servers(self) -> list[VllmServer]:
        """Of both roles."""
        return [*self.prefill, *self.decode]

    def start(self) -> Self:
        """Starts everything and waits for it. Raises RuntimeError when something doesn't come up."""
        try:
            self.daemon.start()
            self.master.start()
            for server in self.servers:
                server.start(wait=False)
            for server in self.servers:
                server.wait()
            self.proxy.start()
            self.proxy.wait_for_all()
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """Stops everything."""
        with contextlib.ExitStack() as stack:
            for part in (self.daemon, self.master, *self.servers, self.proxy):
                stack.callback(part.stop)

    def complete(self, prompt: Sequence[int] | str, max_tokens: int, **options: Any) -> Completion:
        """One answer through the proxy, as `completions.complete`."""
        return complete(self.proxy.port, prompt, max_tokens, **options)

    def complete_all(self, prompts: Sequence[Sequence[int]], max_tokens: int, **options: Any) -> list[Completion]:
        """Answers to all prompts, many at once."""
        return complete_all(self.proxy.port, prompts, max_tokens, **options)

    def counts(self) -> Counts:
        """What was found, moved and kept so far, over all instances. Those that don't run don't count."""
        prefill = [server.metrics() for server in self.prefill if server.is_running]
        decode = [server.metrics() for server in self.decode if server.is_running]
        found = [metrics.prefix_cache() for metrics in prefill]
        return Counts(
            own_hits=sum(one.local_hits for one in found),
            stored_hits=sum(one.external_hits for one in found),
            spared_tokens=sum(one.external_hits + one.local_hits for one in (each.prefix_cache() for each in decode)),
            moved_bytes=int(sum(metrics.total(MOVED_BYTES) for metrics in decode)),
            failed_pulls=int(sum(metrics.total(FAILED_PULLS) for metrics in decode)),
            held_blocks=int(sum(metrics.total(HELD_BLOCKS) for metrics in prefill)),
            requests=sum(map(under_way, [*prefill, *decode])),
        )

    def settle(self, timeout: float = 60.0) -> Counts:
        """Waits until no request is under way and nothing is kept any more. Raises TimeoutError at the timeout."""

        def idle() -> bool:
            counts = self.counts()
            return counts.requests == 0 and counts.held_blocks == 0

        wait_until(idle, timeout, "requests or blocks are left")
        return self.counts()

    def forget(self) -> None:
        """Empties the instances' own prefix caches, when all is stored in the daemon, which goes on to hold it."""
        self.proxy.ask("/reset_prefix_cache", method="POST")
        for server in self.servers:
            # refused as long as something is being stored
            server.reset_prefix_cache()

    def _servers(self, role: str, group: Group) -> Iterator[VllmServer]:
        scenario = self.scenario
        for instance in range(group.instances):
            # each rank has a port for each of its workers, and counts its own from its first
            ports = free_ports(2 * group.data_parallel * group.tensor_parallel)
            rpc_port = free_port()
            for rank in range(group.data_parallel):
                port = ports + rank * group.tensor_parallel
                sizes = (scenario.prefill, scenario.decode)
                if role == "prefill":
                    transfer = prefill_transfer(port, *sizes, self._ucm, self._handoff, self._cache)
                else:
                    transfer = decode_transfer(port, *sizes, self._handoff)
                yield VllmServer(
                    self.model,
                    log=self.folder / f"{role}-{instance}-{rank}.log",
                    kv_transfer={**transfer, **self._policy},
                    tensor_parallel=group.tensor_parallel,
                    arguments=[*_data_parallel(group, rank, rpc_port), *server_arguments(scenario)],
                    environment=self._environment,
                    **self._options,
                )

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def under_way(metrics: Metrics) -> int:
    """Requests that an instance has, waiting ones included."""
    return int(sum(metrics.total(name) for name in ("vllm:num_requests_running", "vllm:num_requests_waiting")))


def _data_parallel(group: Group, rank: int, rpc_port: int) -> list[str]:
    settings = {
        "--data-parallel-size": group.data_parallel,
        "--data-parallel-address": "127.0.0.1",
        "--data-parallel-rpc-port": rpc_port,
        "--data-parallel-rank": rank,
    }
    if group.data_parallel == 1:
        return []
    return [str(part) for setting in settings.items() for part in setting]


def complete_all(
    port: int, prompts: Sequence[Sequence[int]], max_tokens: int, *, concurrency: int = CONCURRENCY, **options: Any
) -> list[Completion]:
    """Answers of the server at a port to all prompts, many at once. Raises what the first failed one raises."""
    with ThreadPoolExecutor(concurrency) as clients:
        return list(clients.map(lambda one: complete(port, one, max_tokens, **options), prompts))
