"""Keyed random numbers: Philox4x32-10, so that a key gets the same numbers in any batch, worker, retry or device.

    key, draw ─► counter (key low, key high, draw, 0) ─┐
    seed ──────► key (seed low, seed high) ────────────┴─► ten rounds ─► four 32-bit words ─► u in [0, 1), 53 bits

Source: Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011 (Random123).
"""

from __future__ import annotations

import torch
from torch import Tensor

Words = tuple[Tensor, Tensor, Tensor, Tensor]

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_POSITION_BITS = 20
_CHUNK = 2**16  # numbers made at once: what they need on the way stays in the processor's cache


def uniforms(keys: Tensor, draws: int, *, seed: int) -> Tensor:
    """float64 [..., draws] in [0, 1) for int64 `keys` [...]: a pure function of (seed, key, draw)."""
    low = (keys & _MASK).unsqueeze(-1)
    high = (keys >> 32 & _MASK).unsqueeze(-1)
    draw = torch.arange(draws, device=keys.device)
    return _to_unit(philox((low, high, draw, torch.zeros_like(draw)), seed))


def permutation(n: int, *, seed: int, stream: int = 0) -> Tensor:
    """A permutation of 0..n-1, int64 [n]; each (seed, stream) has its own, equal on every device.

    The last counter word is 1, so that no permutation shares its numbers with `uniforms`.
    """
    low, high, one = (torch.tensor(word) for word in (stream & _MASK, stream >> 32 & _MASK, 1))
    chunks = torch.arange(n).split(_CHUNK)
    return torch.argsort(torch.cat([_to_unit(philox((chunk, low, high, one), seed)) for chunk in chunks]), stable=True)


def position_keys(row_ids: Tensor, num_positions: int) -> Tensor:
    """Keys int64 [B, T] of the positions of windows `row_ids` [B]: row_id · 2^20 + position."""
    if num_positions > 1 << _POSITION_BITS:
        raise ValueError(f"num_positions must be at most 2**{_POSITION_BITS}, got {num_positions}: use shorter windows")
    return (row_ids << _POSITION_BITS).unsqueeze(-1) + torch.arange(num_positions, device=row_ids.device)


def philox(counter: Words, seed: int) -> Words:
    """Philox4x32-10 of four broadcastable int64 tensors that hold 32-bit words, under the 64-bit key `seed`."""
    c0, c1, c2, c3 = counter
    k0, k1 = seed & _MASK, seed >> 32 & _MASK
    for _ in range(_ROUNDS):
        high0, low0 = _wide_product(c0, _MULTIPLIERS[0])
        high1, low1 = _wide_product(c2, _MULTIPLIERS[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1, c2, c3


def _wide_product(word: Tensor, multiplier: int) -> tuple[Tensor, Tensor]:
    """High and low 32 bits of a 64-bit product, from halves of the multiplier: int64 has no room for the sign bit."""
    upper = word * (multiplier >> 16)
    lower = word * (multiplier & 0xFFFF)
    return (upper + (lower >> 16)) >> 16, ((upper << 16) + lower) & _MASK


def _to_unit(words: Words) -> Tensor:
    """53 of the first 64 bits as float64 in [0, 1)."""
    return ((words[0] >> 5) * 2**26 + (words[1] >> 6)).double() * 2.0**-53
