"""Configurations and tensors of the model families that a made model can belong to.

Most have a layout of KV blocks of their own: attention over everything, sliding windows in some layers, a compressed
latent (MLA), and layers that keep a state instead of keys and values. One has experts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from .prompts import VOCABULARY

SLIDING_WINDOW = 256


@dataclass(frozen=True)
class Sizes:
    """Of one preset. Heads are even in number, so that two ranks can share them."""

    layers: int
    hidden: int
    heads: int
    key_value_heads: int
    intermediate: int
    head: int = 64


@dataclass(frozen=True)
class Tensor:
    """One tensor of a checkpoint: ones if it has no deviation, normally distributed numbers otherwise."""

    name: str
    shape: tuple[int, ...]
    deviation: float | None


PRESETS = {
    "tiny": Sizes(layers=4, hidden=256, heads=4, key_value_heads=2, intermediate=512),
    "small": Sizes(layers=8, hidden=512, heads=8, key_value_heads=2, intermediate=1536),
    "medium": Sizes(layers=12, hidden=1024, heads=16, key_value_heads=4, intermediate=3072),
}
# sharp attention, so that what is generated depends on far keys and values
_SHARP = 1.6
# one logit well above the others, so that rounding doesn't change a greedy choice
_DECIDED = 2.0


def _matrix(name: str, outputs: int, inputs: int, gain: float = 1.0) -> Tensor:
    return Tensor(f"{name}.weight", (outputs, inputs), gain / math.sqrt(inputs))


def _norm(name: str, width: int) -> Tensor:
    return Tensor(f"{name}.weight", (width,), None)


class Llama:
    """Attention over everything in every layer."""

    architecture = "LlamaForCausalLM"
    model_type = "llama"

    def __init__(self, sizes: Sizes) -> None:
        self.sizes = sizes

    def configuration(self) -> dict[str, Any]:
        """What config.json holds beside what all have in common."""
        return {
            "num_key_value_heads": self.sizes.key_value_heads,
            "head_dim": self.sizes.head,
            "rms_norm_eps": 1e-6,
            "tie_word_embeddings": False,
        }

    def tensors(self) -> Iterator[Tensor]:
        """Of the whole checkpoint."""
        sizes = self.sizes
        yield Tensor("model.embed_tokens.weight", (VOCABULARY, sizes.hidden), 1.0)
        for layer in range(sizes.layers):
            yield from self._layer(f"model.layers.{layer}")
        yield _norm("model.norm", sizes.hidden)
        yield _matrix("lm_head", VOCABULARY, sizes.hidden, _DECIDED)

    def _layer(self, prefix: str) -> Iterator[Tensor]:
        yield from self._attention(f"{prefix}.self_attn")
        yield _matrix(f"{prefix}.mlp.gate_proj", self.sizes.intermediate, self.sizes.hidden)
        yield _matrix(f"{prefix}.mlp.up_proj", self.sizes.intermediate, self.sizes.hidden)
        yield _matrix(f"{prefix}.mlp.down_proj", self.sizes.hidden, self.sizes.intermediate)
        yield _norm(f"{prefix}.input_layernorm", self.sizes.hidden)
        yield _norm(f"{prefix}.post_attention_layernorm", self.sizes.hidden)

    def _attention(self, prefix: str) -> Iterator[Tensor]:
        sizes = self.sizes
        yield _matrix(f"{prefix}.q_proj", sizes.heads * sizes.head, sizes.hidden, _SHARP)
        yield _matrix(f"{prefix}.k_proj", sizes.key_value_heads * sizes.head, sizes.hidden, _SHARP)
        yield _matrix(f"{prefix}.v_proj", sizes.key_value_heads * sizes.head, sizes.hidden)
        yield _matrix(f"{prefix}.o_proj", sizes.hidden, sizes.heads * sizes.head, _DECIDED)


class SlidingLlama(Llama):
    """Every other layer sees only the last tokens: two groups of KV blocks."""

    def configuration(self) -> dict[str, Any]:
        """As a Llama's, with the layers' kinds."""
        kinds = ["sliding_attention" if layer % 2 == 0 else "full_attention" for layer in range(self.sizes.layers)]
        return {**super().configuration(), "layer_types": kinds, "sliding_window": SLIDING_WINDOW}


class LatentDeepseek(Llama):
    """Attention over a compressed latent (MLA), without experts. The latent's sizes are those that kernels support."""

    architecture = "DeepseekV2ForCausalLM"
    model_type = "deepseek_v2"
    latent = 512
    rotary = 64
    plain = 128
    value = 128

    def configuration(self) -> dict[str, Any]:
        """Sizes of the latent; every layer is dense."""
        return {
            "num_key_value_heads": self.sizes.heads,
            "kv_lora_rank": self.latent,
            "q_lora_rank": None,
            "qk_nope_head_dim": self.plain,
            "qk_rope_head_dim": self.rotary,
            "v_head_dim": self.value,
            "first_k_dense_replace": self.sizes.layers,
            "n_routed_experts": 2,
            "n_shared_experts": 1,
            "num_experts_per_tok": 1,
            "moe_intermediate_size": self.sizes.intermediate,
            "rms_norm_eps": 1e-6,
            "tie_word_embeddings": False,
        }

    def _attention(self, prefix: str) -> Iterator[Tensor]:
        sizes = self.sizes
        yield _matrix(f"{prefix}.q_proj", sizes.heads * (self.plain + self.rotary), sizes.hidden, _SHARP)
        yield _matrix(f"{prefix}.kv_a_proj_with_mqa", self.latent + self.rotary, sizes.hidden, _SHARP)
        yield _norm(f"{prefix}.kv_a_layernorm", self.latent)
        yield _matrix(f"{prefix}.kv_b_proj", sizes.heads * (self.plain + self.value), self.latent)
        yield _matrix(f"{prefix}.o_proj", sizes.hidden, sizes.heads * self.value, _DECIDED)


class ConvolutionHybrid(Llama):
    """Every other layer is a short convolution whose state of the last tokens is kept instead of keys and values."""

    architecture = "Lfm2ForCausalLM"
    model_type = "lfm2"
    kernel = 3

    def configuration(self) -> dict[str, Any]:
        """The layers' kinds and the convolution's sizes."""
        return {
            "num_key_value_heads": self.sizes.key_value_heads,
            "layer_types": ["full_attention" if self._attends(layer) else "conv" for layer in range(self.sizes.layers)],
            "conv_L_cache": self.kernel,
            "conv_bias": False,
            "conv_dim": self.sizes.hidden,
            "block_dim": self.sizes.hidden,
            "block_auto_adjust_ff_dim": False,
            "norm_eps": 1e-6,
            "tie_word_embeddings": True,
        }

    def tensors(self) -> Iterator[Tensor]:
        """Of the whole checkpoint. The embedding, also the last layer, is small: the last token shall not win."""
        sizes = self.sizes
        yield Tensor("model.embed_tokens.weight", (VOCABULARY, sizes.hidden), _DECIDED / math.sqrt(sizes.hidden))
        for layer in range(sizes.layers):
            prefix = f"model.layers.{layer}"
            yield from self._mixer(prefix, self._attends(layer))
            yield _matrix(f"{prefix}.feed_forward.w1", sizes.intermediate, sizes.hidden)
            yield _matrix(f"{prefix}.feed_forward.w3", sizes.intermediate, sizes.hidden)
            yield _matrix(f"{prefix}.feed_forward.w2", sizes.hidden, sizes.intermediate)
            yield _norm(f"{prefix}.operator_norm", sizes.hidden)
            yield _norm(f"{prefix}.ffn_norm", sizes.hidden)
        yield _norm("model.embedding_norm", sizes.hidden)

    def _mixer(self, prefix: str, attends: bool) -> Iterator[Tensor]:
        sizes = self.sizes
        if attends:
            for tensor in self._attention(f"{prefix}.self_attn"):
                yield Tensor(tensor.name.replace("o_proj", "out_proj"), tensor.shape, tensor.deviation)
            yield _norm(f"{prefix}.self_attn.q_layernorm", sizes.head)
            yield _norm(f"{prefix}.self_attn.k_layernorm", sizes.head)
        else:
            yield _matrix(f"{prefix}.conv.in_proj", 3 * sizes.hidden, sizes.hidden)
            yield Tensor(f"{prefix}.conv.conv.weight", (sizes.hidden, 1, self.kernel), 1 / math.sqrt(self.kernel))
            yield _matrix(f"{prefix}.conv.out_proj", sizes.hidden, sizes.hidden, _DECIDED)

    @staticmethod
    def _attends(layer: int) -> bool:
        return layer % 2 == 1


class QwenExperts(Llama):
    """A router picks two of eight small networks for each token, in every layer, as in Qwen3's models of experts."""

    architecture = "Qwen3MoeForCausalLM"
    model_type = "qwen3_moe"
    experts = 8
    chosen = 2

    def configuration(self) -> dict[str, Any]:
        """As a Llama's, with the experts."""
        return {
            **super().configuration(),
            "num_experts": self.experts,
            "num_experts_per_tok": self.chosen,
            "moe_intermediate_size": self._width,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
            "norm_topk_prob": True,
        }

    def _layer(self, prefix: str) -> Iterator[Tensor]:
        sizes = self.sizes
        yield from self._attention(f"{prefix}.self_attn")
        yield _norm(f"{prefix}.self_attn.q_norm", sizes.head)
        yield _norm(f"{prefix}.self_attn.k_norm", sizes.head)
        yield _matrix(f"{prefix}.mlp.gate", self.experts, sizes.hidden, _DECIDED)
        for expert in range(self.experts):
            name = f"{prefix}.mlp.experts.{expert}"
            yield _matrix(f"{name}.gate_proj", self._width, sizes.hidden)
            yield _matrix(f"{name}.up_proj", self._width, sizes.hidden)
            yield _matrix(f"{name}.down_proj", sizes.hidden, self._width)
        yield _norm(f"{prefix}.input_layernorm", sizes.hidden)
        yield _norm(f"{prefix}.post_attention_layernorm", sizes.hidden)

    @property
    def _width(self) -> int:
        return self.sizes.intermediate // self.chosen


FAMILIES: dict[str, type[Llama]] = {
    "llama": Llama,
    "experts": QwenExperts,
    "sliding": SlidingLlama,
    "latent": LatentDeepseek,
    "convolution": ConvolutionHybrid,
}
