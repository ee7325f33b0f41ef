"""The permuted tasks are the public code's."""

import pytest
import torch
from dendrite_lab.data import MNIST
from dendrite_lab.errors import LabError
from dendrite_lab.permuted import PermutedMNIST, batches, permutations


def test_permutations_are_those_of_the_global_generator():
    torch.manual_seed(42)
    want = [torch.arange(784), *(torch.randperm(784) for _ in range(4))]
    assert all(torch.equal(a, b) for a, b in zip(permutations(5), want, strict=True))
    assert torch.equal(permutations(3)[2], permutations(9)[2])


def test_pixels_are_normalised_and_then_permuted():
    images = torch.randint(0, 256, (5, 784), dtype=torch.uint8)
    tasks = PermutedMNIST(MNIST(images, torch.arange(5), images[:2], torch.arange(2)), 3)
    x, labels = tasks.train(2)
    want = ((images.float() / 255 - 0.13062755) / 0.30810780)[:, permutations(3)[2]]
    torch.testing.assert_close(x, want, rtol=1e-6, atol=1e-6)
    assert labels.tolist() == [0, 1, 2, 3, 4]
    torch.testing.assert_close(tasks.test(0)[0], x[:2][:, permutations(3)[2].argsort()])


def test_batches_are_shuffled_whole_and_repeatable():
    first = batches(1000, 256, torch.Generator().manual_seed(1))
    again = batches(1000, 256, torch.Generator().manual_seed(1))
    assert [len(b) for b in first] == [256] * 3 and torch.equal(torch.cat(first), torch.cat(again))
    assert len(torch.cat(first).unique()) == 768 and not torch.equal(first[0].sort().values, torch.arange(256))
    assert len(batches(60000, 256, torch.Generator())) == 234


def test_a_batch_of_more_than_there_is_is_refused():
    with pytest.raises(LabError, match="batch_size: expected at most the 9 samples that a task trains on, got 10"):
        batches(9, 10, torch.Generator())
    assert [len(batch) for batch in batches(9, 9, torch.Generator())] == [9]
