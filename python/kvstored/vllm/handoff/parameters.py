"""What prefill and decode instances tell one another by way of the proxy: the fields of `kv_transfer_params`."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kvstored import InvalidInput
from kvstored.mooncake.settings import address
from kvstored.vllm.handoff.configuration import Sizes
from kvstored.vllm.handoff.placement import Place
from kvstored.vllm.identity import lora_name

WANTS_HANDOFF = "do_remote_decode"
"""To a prefill instance: keep the prompt's blocks for somebody else."""
HAS_HANDOFF = "do_remote_prefill"
"""To a decode instance: a prefill instance has kept them."""
ABANDONED = "kvstored_abandon"
"""To a decode instance: nobody waits for an answer any more; let the prefill instance have its blocks back."""
TRANSFER = "kvstored_transfer"
"""To both: a name for this prompt's way from the one to the other, where decode is to follow the computation."""
OVERLAPS = "kvstored_overlap"
"""From a prefill instance: prompts that come with a `TRANSFER` can be followed."""
_PROMPT = "kvstored_prompt"

MOST_NAME_BYTES = 256
"""Of a name of an engine or a request."""
_MOST_TRANSFER_BYTES = 128
_MOST_RANKS = 4096


@dataclass(frozen=True)
class Source:
    """Whose blocks a request can have."""

    engine_id: str
    request_id: str
    """What the prefill instance calls the request."""
    addresses: tuple[str, ...]
    """Of all its workers, by `pp_rank * tp_size + tp_rank`."""
    follows: bool = False
    """Whether it may be computed still."""


def offer(
    place: Place, request: Any, block_ids: Sequence[int], block_tokens: int, name: str, *, overlaps: bool
) -> dict[str, Any]:
    """What a prefill instance answers whose workers keep a prompt's blocks under a name."""
    output = request.output_token_ids
    return {
        WANTS_HANDOFF: False,
        HAS_HANDOFF: True,
        "remote_engine_id": place.engine_id,
        "remote_request_id": name,
        "remote_host": place.host,
        "remote_port": place.base_port,
        "remote_ptp_size": place.tp_size,
        "remote_pp_size": place.pp_size,
        "remote_block_ids": list(block_ids),
        "remote_block_size": block_tokens,
        "num_prompt_blocks": len(block_ids),
        "last_token_id": int(output[-1]) if len(output) else None,
        _PROMPT: _prompt_digest(request),
    } | ({OVERLAPS: True} if overlaps else {})


def transfer_name(params: Mapping[str, Any], request: Any) -> str | None:
    """What workers call a prompt that is followed. The prompt is part of it, so that nobody follows another one. None
    where it can't be followed.

    Raises:
        InvalidInput: naming the field.
    """
    digest = _prompt_digest(request)
    if params.get(TRANSFER) is None or digest is None:
        return None
    return f"{_text(params, TRANSFER, _MOST_TRANSFER_BYTES)}:{digest}"


def read_source(params: Mapping[str, Any], sizes: Sizes, request: Any) -> Source:
    """Whose blocks of a prompt the parameters name; `sizes` of the prefill instance count where they don't tell.

    Raises:
        InvalidInput: naming the field.
    """
    engine_id = _text(params, "remote_engine_id")
    followed = transfer_name(params, request)
    request_id = followed or _text(params, "remote_request_id")
    host = _text(params, "remote_host")
    port = _number(params, "remote_port", 65_535)
    tp_size = _number(params, "remote_ptp_size", _MOST_RANKS, sizes.tp_size or 1)
    pp_size = _number(params, "remote_pp_size", _MOST_RANKS, sizes.pp_size or 1)
    if tp_size * pp_size > _MOST_RANKS or port + tp_size * pp_size - 1 > 65_535:
        raise InvalidInput(f"remote_ptp_size {tp_size} and remote_pp_size {pp_size} are too many from port {port}")
    if any(sign.isspace() or sign in "/@?#," for sign in host):
        raise InvalidInput(f'remote_host "{host}" is no host')
    ports = range(port, port + tp_size * pp_size)
    return Source(engine_id, request_id, tuple(address(host, each) for each in ports), followed is not None)


def check_prompt(params: Mapping[str, Any], request: Any, block_tokens: int) -> None:
    """That what was computed there is this request's prompt, in blocks like these. What isn't told isn't checked.

    Raises:
        InvalidInput: naming the field.
    """
    blocks = -(-request.num_prompt_tokens // block_tokens)
    ids = params.get("remote_block_ids")
    for name, value, own in (
        ("remote_block_size", params.get("remote_block_size"), block_tokens),
        ("num_prompt_blocks", params.get("num_prompt_blocks"), blocks),
        ("the number of remote_block_ids", len(ids) if isinstance(ids, list) else None, blocks),
        (_PROMPT, params.get(_PROMPT), _prompt_digest(request)),
    ):
        if value is not None and own is not None and value != own:
            raise InvalidInput(f"{name} is {value}, but this request's is {own}")


def _prompt_digest(request: Any) -> str | None:
    """Of the prompt's tokens and the adapter that they are computed with; None for prompts without tokens."""
    tokens = request.prompt_token_ids
    if tokens is None:
        return None
    digest = hashlib.blake2b(np.asarray(tokens, dtype="<i8").tobytes(), digest_size=16)
    digest.update(lora_name(request.lora_request).encode())
    return digest.hexdigest()


def _text(params: Mapping[str, Any], name: str, most_bytes: int = MOST_NAME_BYTES) -> str:
    value = params.get(name)
    if not isinstance(value, str) or not 0 < len(value.encode(errors="replace")) <= most_bytes:
        raise InvalidInput(f"{name} is missing" if value is None else f"{name} is no text of 1 to {most_bytes} bytes")
    return value


def _number(params: Mapping[str, Any], name: str, most: int, otherwise: int | None = None) -> int:
    value = params.get(name, otherwise)
    if value is None:
        value = otherwise
    # some proxies pass numbers as text
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 8:
        value = int(value)
    if type(value) is not int or not 1 <= value <= most:
        raise InvalidInput(f"{name} is missing" if value is None else f"{name} is no number from 1 to {most}")
    return value
