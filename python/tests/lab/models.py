"""Small random models that vLLM serves like real ones. The same arguments make the same bytes, on every machine."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from .architectures import FAMILIES, PRESETS, Llama, Tensor
from .prompts import VOCABULARY
from .tokenizer import SPECIAL, write_tokenizer

_RECIPE = "recipe.json"
# raised when the same arguments make another model than before
_RECIPE_VERSION = 1


def make_model(
    directory: Path,
    preset: str = "tiny",
    *,
    family: str = "llama",
    seed: int = 0,
    dtype: str = "float32",
    max_tokens: int = 32_768,
) -> Path:
    """Writes configuration, weights and tokenizer into `directory`, unless they are there, and returns it.

    preset: tiny, small or medium. family: llama, experts, sliding, latent or convolution. seed: other weights.
    dtype: of the weights, as torch calls it. max_tokens: the longest context. Raises KeyError for an unknown preset or
    family.
    """
    model = FAMILIES[family](PRESETS[preset])
    recipe = json.dumps([_RECIPE_VERSION, preset, family, seed, dtype, max_tokens])
    made = directory / _RECIPE
    if made.is_file() and made.read_text() == recipe:
        return directory
    directory.mkdir(parents=True, exist_ok=True)
    _write_weights(directory / "model.safetensors", model, seed, dtype)
    configuration = _configuration(model, dtype, max_tokens)
    (directory / "config.json").write_text(json.dumps(configuration, indent=1) + "\n")
    ends = {"bos_token_id": SPECIAL.index("<s>"), "eos_token_id": SPECIAL.index("</s>")}
    (directory / "generation_config.json").write_text(json.dumps(ends) + "\n")
    write_tokenizer(directory, max_tokens=max_tokens)
    # last, so that a model that was half written is made again
    made.write_text(recipe)
    return directory


def _configuration(model: Llama, dtype: str, max_tokens: int) -> dict[str, Any]:
    sizes = model.sizes
    return {
        "architectures": [model.architecture],
        "model_type": model.model_type,
        "hidden_size": sizes.hidden,
        "intermediate_size": sizes.intermediate,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": max_tokens,
        "rope_theta": 1_000_000.0,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": SPECIAL.index("<s>"),
        "eos_token_id": SPECIAL.index("</s>"),
        "pad_token_id": SPECIAL.index("<pad>"),
        "dtype": dtype,
        **model.configuration(),
    }


def _write_weights(path: Path, model: Llama, seed: int, dtype: str) -> None:
    import torch
    from safetensors.torch import save_file

    def filled(tensor: Tensor) -> torch.Tensor:
        if tensor.deviation is None:
            return torch.ones(tensor.shape, dtype=getattr(torch, dtype))
        # by name, so that a tensor doesn't depend on those before it
        digest = hashlib.sha256(f"{seed}/{tensor.name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
        return (torch.randn(tensor.shape, generator=generator) * tensor.deviation).to(getattr(torch, dtype))

    save_file({tensor.name: filled(tensor) for tensor in model.tensors()}, path, metadata={"format": "pt"})
