"""SparseTargets: dense form, mass, number of unique ids."""

import pytest
import torch

from rskd.sparse_targets import SparseTargets

TARGETS = SparseTargets(
    torch.tensor([[2, 0, 2, 0], [1, 3, 0, 0]]), torch.tensor([[0.25, 0.5, 0.125, 0.0], [0.5, 0.5, 0.0, 0.0]])
)


def test_repeated_ids_add_up_and_padding_adds_nothing():
    assert TARGETS.to_dense(4).tolist() == [[0.5, 0, 0.375, 0], [0, 0.5, 0, 0.5]]


def test_mass_and_unique_ids():
    assert TARGETS.mass.tolist() == [0.875, 1.0]
    assert TARGETS.num_unique.tolist() == [2, 2]


def test_no_entries_are_a_distribution_of_no_mass():
    empty = SparseTargets(torch.zeros(3, 0).long(), torch.zeros(3, 0))
    assert empty.to_dense(4).eq(0).all()
    assert empty.num_unique.tolist() == [0, 0, 0]


def test_reshape_keeps_the_entries_of_a_position_together():
    reshaped = TARGETS.reshape(1, 2)
    assert reshaped.ids.shape == (1, 2, 4)
    assert torch.equal(reshaped.to_dense(4)[0], TARGETS.to_dense(4))


def test_shapes_must_agree():
    with pytest.raises(ValueError, match="differ in shape"):
        SparseTargets(torch.zeros(2, 3).long(), torch.zeros(2, 4))
