"""Augmentation against flips, shifts and turns done by hand; the classes of tasks are a partition."""

import math

import pytest
import torch
from dendrite_lab.images import MEAN, STD, Augmentation, drawn_classes, moved, normalised, of_classes


def still(count, **changes):
    """Arguments of `moved` that leave images as they are, but for the changes."""
    none = {"flip": False, "angle": 0.0, "shift": (0.0, 0.0), "scale": 1.0, **changes}
    return {key: torch.tensor([value] * count) for key, value in none.items()}


@pytest.fixture
def images():
    return torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def by_hand(images, right, down):
    """Shifted by whole pixels, 0 where nothing comes from."""
    out = torch.zeros_like(images)
    out[:, :, down:, right:] = images[:, :, : 32 - down, : 32 - right]
    return out


@pytest.mark.parametrize(
    "changes, want",
    [
        ({}, lambda x: x),
        ({"flip": True}, lambda x: x.flip(3)),
        ({"shift": (3 / 32, 5 / 32)}, lambda x: by_hand(x, 3, 5)),
        ({"flip": True, "shift": (3 / 32, 5 / 32)}, lambda x: by_hand(x.flip(3), 3, 5)),  # the flip comes first
        ({"angle": math.pi / 2}, lambda x: x.rot90(-1, (2, 3))),  # clockwise
        ({"angle": math.pi / 2, "shift": (3 / 32, 5 / 32)}, lambda x: by_hand(x.rot90(-1, (2, 3)), 3, 5)),
        # twice as large: the inner half, each pixel between two of the output's
        ({"scale": 0.5}, lambda x: torch.nn.functional.pad(torch.nn.functional.avg_pool2d(x, 2), (8, 8, 8, 8))),
    ],
)
def test_moves_done_by_hand(images, changes, want):
    # places are exact to some 1e-5 of a pixel in float32, and neighbours differ by 1 at most
    torch.testing.assert_close(moved(images, **still(4, **changes)), want(images), rtol=0, atol=1e-4)


def test_each_image_is_moved_in_its_own_way(images):
    args = still(4)
    args["flip"], args["shift"][2] = torch.tensor([True, False, False, False]), torch.tensor([0.5, 0.0])
    out = moved(images, **args)
    for number, want in enumerate((images.flip(3), images, by_hand(images, 16, 0), images)):
        torch.testing.assert_close(out[number], want[number], rtol=0, atol=1e-4)


def test_draws_lie_in_their_ranges_and_follow_from_the_generator():
    """A bright dot right of the centre says where it went: by its mean place, angle, scale and flip."""
    count = 2000
    dot = torch.zeros(count, 1, 65, 65)
    dot[:, :, 31:34, 43:46] = 1 / 9  # 12 right of the centre
    only = {"degrees": 0.0, "shift": 0.0, "scale": (1.0, 1.0), "flip": 0.0}

    def places(**some):
        out = Augmentation(**{**only, **some})(dot, torch.Generator().manual_seed(5))
        weight = out.sum((1, 2, 3))
        axis = torch.arange(65.0) - 32
        return (out.sum((1, 2)) @ axis) / weight, (out.sum((1, 3)) @ axis) / weight

    right, _ = places(flip=0.5)
    assert set(right.round().tolist()) == {12.0, -12.0}
    assert (right > 0).float().mean() == pytest.approx(0.5, abs=4 * 0.5 / math.sqrt(count))
    right, down = places(degrees=30.0)
    turned = torch.rad2deg(torch.atan2(down, right))
    assert -30.1 < turned.min() < -29 and 29 < turned.max() < 30.1
    right, down = places(shift=0.2)
    for moved_by in (right - 12, down):
        assert -13.1 < moved_by.min() < -12.8 and 12.8 < moved_by.max() < 13.1  # 0.2 x 65
    right, _ = places(scale=(0.8, 1.2))
    assert right.min() == pytest.approx(0.8 * 12, abs=0.1) and right.max() == pytest.approx(1.2 * 12, abs=0.1)


def test_normalising_gives_the_channels_statistics():
    x = torch.tensor(MEAN)[None, :, None, None] + torch.tensor([[[[-1.0, 2.0]]]]) * torch.tensor(STD)[:, None, None]
    torch.testing.assert_close(normalised(x), torch.tensor([-1.0, 2.0]).expand(1, 3, 1, 2))


@pytest.mark.parametrize("classes, tasks, of_each", [(100, 10, 10), (10, 5, 2)])
def test_drawn_classes_are_a_partition_and_follow_from_the_seed(classes, tasks, of_each):
    drawn = drawn_classes(classes, tasks, of_each, 7)
    assert drawn.shape == (tasks, of_each) and sorted(drawn.flatten().tolist()) == list(range(classes))
    assert torch.equal(drawn, drawn_classes(classes, tasks, of_each, 7))
    assert not torch.equal(drawn, drawn_classes(classes, tasks, of_each, 8))


def test_samples_of_classes_and_their_new_labels():
    index, labels = of_classes(torch.tensor([4, 1, 3, 1, 0, 4]), torch.tensor([3, 4, 9]))
    assert index.tolist() == [0, 2, 5] and labels.tolist() == [1, 0, 1]
