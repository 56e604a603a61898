"""rskd.rng against Random123's known answers, and as a source of uniform numbers."""

import pytest
import torch

from rskd.rng import permutation, philox, position_keys, uniforms

ONES = 0xFFFFFFFF
KNOWN_ANSWERS = [  # Random123, kat_vectors: counter, key, output
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((ONES,) * 4, (ONES, ONES), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_philox_gives_the_published_words(counter, key, expected):
    words = philox(tuple(torch.tensor([word]) for word in counter), key[1] << 32 | key[0])
    assert tuple(int(word) for word in words) == expected


def test_uniforms_take_53_bits_of_the_first_two_words():
    u = uniforms(torch.tensor(0), 1, seed=0)
    assert u.dtype == torch.float64
    assert u.item() == ((0x6627E8D5 >> 5) * 2**26 + (0xE169C58D >> 6)) / 2**53


def test_uniforms_depend_on_seed_key_and_draw_alone():
    keys = torch.tensor([[3, 2**40 + 3], [2**62, 0]])
    u = uniforms(keys, 5, seed=11)
    assert u.shape == (2, 2, 5)
    assert u.unique().numel() == u.numel()
    assert torch.equal(uniforms(keys[1, :1], 3, seed=11), u[1, :1, :3])
    assert not torch.equal(uniforms(keys, 5, seed=11 + 2**32), u)


def test_uniforms_are_uniform():
    u = uniforms(torch.arange(20_000), 10, seed=1).flatten()
    assert u.min() >= 0
    assert u.max() < 1
    observed = torch.histc(u, 100, 0, 1)
    chi2 = ((observed - u.numel() / 100) ** 2 / (u.numel() / 100)).sum()
    assert 99 - 4 * (2 * 99) ** 0.5 < chi2 < 99 + 4 * (2 * 99) ** 0.5


def test_permutation_is_one_and_has_streams():
    first = permutation(1000, seed=5, stream=0)
    assert torch.equal(first.sort().values, torch.arange(1000))
    assert torch.equal(first, permutation(1000, seed=5))
    for other in (
        permutation(1000, seed=6),
        permutation(1000, seed=5, stream=1),
        permutation(1000, seed=5, stream=2**32),
    ):
        assert (first == other).sum() < 20


def test_permutation_of_nothing_is_empty():
    assert permutation(0, seed=0).shape == (0,)


def test_position_keys_are_row_times_2_to_20_plus_position():
    assert position_keys(torch.tensor([0, 7]), 3).tolist() == [[0, 1, 2], [7 << 20, (7 << 20) + 1, (7 << 20) + 2]]
    with pytest.raises(ValueError, match="at most 2\\*\\*20"):
        position_keys(torch.tensor([0]), 2**20 + 1)
