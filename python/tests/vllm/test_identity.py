"""What may stand for what: only KV of the same model, weights, adapter, salt, type and hashes is ever loaded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from connector_rig import MODES, Engine, Reference, cached, embedded, tokens, transfer
from lab import prompt

TOKENS = 8
Start = Callable[..., Engine]
ModelMaker = Callable[..., Path]


@pytest.fixture(scope="module")
def filled(tiny_model: Path, module_folder: Path, reference: Reference) -> Path:
    """A storage directory with the blocks of two prompts; what was asked for in it is in `ASKED`."""
    storage = module_folder / "blocks"
    settings = embedded(storage)
    with Engine(tiny_model, kv_transfer=transfer(settings), log=module_folder / "filling.log") as engine:
        answers = engine.generate(ASKED, TOKENS)
        engine.settle()
        salts(engine)
    assert tokens(answers) == reference.tokens(ASKED, TOKENS)
    return storage


ASKED = [prompt(600, seed=1), prompt(2000, seed=2)]
FOUND = [512, 1920]


def salts(engine: Engine) -> None:
    """Salted prompts are found under the same salt only."""

    def ask(salt: str | None) -> int | None:
        asked: dict[str, Any] = {"prompt_token_ids": prompt(600, seed=3)}
        if salt is not None:
            asked["cache_salt"] = salt
        found = cached(engine.generate([asked], TOKENS))
        engine.settle()
        return found[0]

    assert [ask("one"), ask("two"), ask(None), ask("one"), ask("two"), ask(None)] == [0, 0, 0, 512, 512, 512]


@pytest.mark.parametrize("mode", ["async", "layerwise"])
def test_a_restarted_engine_finds_what_the_one_before_stored(
    connected: Start, tiny_model: Path, reference: Reference, filled: Path, mode: str
) -> None:
    # its scheduler in a process of its own, as in a server
    engine = connected(
        tiny_model,
        kv_transfer=transfer(embedded(filled, **MODES[mode])),
        environment={"VLLM_ENABLE_V1_MULTIPROCESSING": "1"} if mode == "async" else {},
    )
    answers = engine.generate(ASKED, TOKENS)
    assert (cached(answers), tokens(answers)) == (FOUND, reference.tokens(ASKED, TOKENS))


@pytest.mark.parametrize("other", ["weights", "type"])
def test_other_weights_and_types_never_hit(
    connected: Start, models: ModelMaker, tiny_model: Path, reference: Reference, filled: Path, other: str
) -> None:
    model = models("tiny", seed=1) if other == "weights" else tiny_model
    engine = connected(
        model, kv_transfer=transfer(embedded(filled)), dtype="float32" if other == "weights" else "bfloat16"
    )
    first = engine.generate(ASKED, TOKENS)
    engine.settle()
    second = engine.generate(ASKED, TOKENS)
    assert (cached(first), cached(second)) == ([0, 0], FOUND)
    assert tokens(second) == tokens(first)
    if other == "weights":
        assert tokens(first) != reference.tokens(ASKED, TOKENS)


@pytest.mark.parametrize("algorithm", ["sha256_cbor", "xxhash"])
def test_other_hashes_hit_among_themselves(
    connected: Start, tiny_model: Path, reference: Reference, filled: Path, algorithm: str
) -> None:
    engine = connected(
        tiny_model, kv_transfer=transfer(embedded(filled)), prefix_caching=True, prefix_caching_hash_algo=algorithm
    )
    for found in ([0, 0], FOUND):
        answers = engine.generate(ASKED, TOKENS)
        assert (cached(answers), tokens(answers)) == (found, reference.tokens(ASKED, TOKENS))
        engine.settle()


def test_adapters_are_kept_apart(
    connected: Start, tiny_model: Path, reference: Reference, filled: Path, folder: Path
) -> None:
    adapters = [make_adapter(folder / f"adapter-{seed}", seed) for seed in (1, 2)]
    engine = connected(
        tiny_model, kv_transfer=transfer(embedded(filled)), enable_lora=True, max_lora_rank=8, max_loras=1
    )
    seen: list[list[list[int]]] = []
    for found in ([0, 0], FOUND):
        for number, adapter in enumerate(adapters, start=1):
            answers = engine.probe("generate_with_adapter", prompts=ASKED, adapter=str(adapter), number=number)
            engine.settle()
            assert answers["cached"] == found
            seen.append(answers["tokens"])
    assert seen[0] == seen[2]
    assert seen[1] == seen[3]
    plain = engine.generate(ASKED, TOKENS)
    assert tokens(plain) == reference.tokens(ASKED, TOKENS)
    assert len({str(one) for one in (seen[0], seen[1], tokens(plain))}) == 3

    # other weights under the same name are another adapter
    make_adapter(adapters[0], seed=3)
    answers = engine.probe("generate_with_adapter", prompts=ASKED, adapter=str(adapters[0]), number=3)
    assert answers["tokens"] != seen[0]


def make_adapter(folder: Path, seed: int) -> Path:
    """Writes a LoRA adapter of the tiny model's attention."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir(exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    hidden, heads, key_heads, rank = 256, 4 * 64, 2 * 64, 8
    tensors = {}
    for layer in range(4):
        for name, outputs in (("q_proj", heads), ("v_proj", key_heads)):
            prefix = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            tensors[f"{prefix}.lora_A.weight"] = torch.randn((rank, hidden), generator=generator) * 0.2
            tensors[f"{prefix}.lora_B.weight"] = torch.randn((outputs, rank), generator=generator) * 0.2
    save_file(tensors, folder / "adapter_model.safetensors")
    settings = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": 16,
        "target_modules": ["q_proj", "v_proj"],
        "bias": "none",
    }
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder
