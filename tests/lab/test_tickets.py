"""Lottery tickets and noise: densities and pixels counted by hand, levels, the kept epoch, resuming."""

import pytest
import torch
from dendrite_lab import tickets
from dendrite_lab.cifar import CIFAR
from dendrite_lab.config import experiment
from dendrite_lab.errors import LabError
from dendrite_lab.noise import bright_pixels, pixel_order
from dendrite_lab.permuted import MEAN, STD
from dendrite_lab.tickets_experiment import Tickets
from resuming import resumes_to_the_same
from torch.nn.functional import conv2d, cross_entropy, linear, max_pool2d

TINY = {"levels": "3", "epochs": "2", "train_samples": "180", "validation": "100", "noise": "0,0.5"}
FC = (784 * 300, 300 * 100, 100 * 10)


@pytest.fixture(autouse=True)
def one_thread(threads):
    threads(1)


def tiny(**changes):
    return experiment("tickets_fc", {**TINY, **changes})


@pytest.mark.parametrize("name", ["tickets_fc", "tickets_lenet5"])
def test_the_sources_settings(name):
    config = experiment(name)
    assert (config.levels, config.pruned, config.lr, config.weight_decay) == (35, 0.125, 1.2e-3, 1e-4)
    assert (config.batch_size, config.epochs, config.noise[0], config.noise[-1]) == (60, 100, 0, 0.5)
    assert 100 * config.density(config.levels - 1) == pytest.approx(1.07, abs=0.005)
    assert [round(100 * config.density(config.level_of(d)), 1) for d in (1, 0.3, 0.03)] == [100, 30.1, 3.1]
    assert tickets.noisy_levels(config) == {"winning": {0, 9, 26}, "random": {9}}


@pytest.mark.parametrize("name", ["tickets_fc", "tickets_lenet5"])
def test_the_shortened_ones_say_so_and_reach_as_few_weights(name):
    short, whole = experiment(f"{name}_short"), experiment(name)
    assert short.note.startswith("shortened for two cores") and whole.note.startswith("ours, where")
    assert short.density(short.levels - 1) < 0.03
    assert [short.density(short.level_of(d)) for d in short.noisy_densities] == pytest.approx([0.03, 0.3], rel=0.15)
    assert short.steps < whole.steps / 50
    same = ("network", "lr", "weight_decay", "batch_size", "noisy_densities")
    assert all(getattr(short, field) == getattr(whole, field) for field in same)


def test_cifar_10_has_a_third_of_the_noise():
    config, mnist = experiment("tickets_fc_cifar10"), experiment("tickets_fc")
    assert (config.dataset, config.pixels, config.train_samples) == ("cifar10", 3072, 45000)
    assert [3 * share for share in config.noise] == pytest.approx(list(mnist.noise), abs=2e-4)
    assert (config.levels, config.lr, config.batch_size) == (mnist.levels, mnist.lr, mnist.batch_size)


def test_cifar_images_are_normalised_by_channel(tmp_path):
    images = torch.randint(0, 256, (360, 3, 32, 32), dtype=torch.uint8)
    got = tickets.flat_images(images)
    for channel, (mean, std) in enumerate(((0.4914, 0.2023), (0.4822, 0.1994), (0.4465, 0.2010))):
        want = (images[:, channel].double() / 255 - mean) / std
        torch.testing.assert_close(got.view(360, 3, 32, 32)[:, channel].double(), want, atol=1e-5, rtol=0)
    data = CIFAR(images[:300], torch.arange(300) % 10, images[300:], torch.arange(60) % 10, 10)
    row = tickets.run(experiment("tickets_fc_cifar10", {**TINY, "levels": "2"}), 0, data, tmp_path)
    kept, weights = (3072 * 300, 30000, 1000), 3072 * 300 + 31000
    assert row["winning"][1]["density"] == sum(n - round(n / 8) for n in kept) / weights


def test_the_networks():
    images = torch.zeros(2, 784)
    fc, lenet = (tickets.new_network(experiment(name), 0) for name in ("tickets_fc", "tickets_lenet5"))
    shapes = [[tuple(p.shape) for p in model.parameters() if p.dim() > 1] for model in (fc, lenet)]
    assert shapes[0] == [(300, 784), (100, 300), (10, 100)]
    assert shapes[1] == [(64, 1, 3, 3), (64, 64, 3, 3), (256, 12544), (256, 256), (10, 256)]
    assert fc(images).shape == lenet(images).shape == (2, 10)


def test_lenet_5_is_the_sources_whatever_its_order_in_memory():
    """Against the layers as the source has them: ReLU before the pool, images in the usual order."""
    lenet = tickets.new_network(experiment("tickets_lenet5"), 0)
    first, second, *full = [layer for layer in lenet if hasattr(layer, "weight")]
    images, labels = torch.randn(5, 784), torch.arange(5)
    x = images.view(5, 1, 28, 28)
    for layer in (first, second):
        x = conv2d(x, layer.weight.contiguous(), layer.bias, padding=1).relu()
    x = max_pool2d(x, 2).flatten(1)
    for layer in full:
        x = linear(x, layer.weight, layer.bias)
        x = x if layer is full[-1] else x.relu()
    parameters = list(lenet.parameters())
    want = torch.autograd.grad(cross_entropy(x, labels), parameters)
    got = torch.autograd.grad(cross_entropy(lenet(images), labels), parameters)
    for ours, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    "changes, says",
    [
        ({"pruned": "1"}, r"pruned: expected a fraction in \(0, 1\), got 1.0"),
        ({"levels": "0"}, "levels: expected 1 or more, got 0"),
        ({"noise": "0,2"}, r"noise: expected fractions in \[0, 1\], got \(0.0, 2.0\)"),
        ({"train_samples": "56000"}, "train_samples: expected 60 or more, at most 55000, got 56000"),
        ({"network": "x"}, "network: expected one of fc, lenet5, got x"),
        ({"dataset": "cifar10", "network": "lenet5", "train_samples": "60"}, "dataset: expected mnist for lenet5, got"),
        ({"noise": "a"}, "--set noise: expected a value like 0.0,0.05"),
    ],
)
def test_values_that_no_run_could_use(changes, says):
    with pytest.raises(LabError, match=says):
        experiment("tickets_fc", changes)


# ---- noise ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share, count", [(0, 0), (0.05, 39), (0.1, 78), (0.25, 196), (0.5, 392), (1, 784)])
def test_noise_hits_so_many_pixels_of_each_image_with_its_value(share, count):
    x = torch.rand(20, 784)
    noisy = bright_pixels(x, share, pixel_order(20, 784, seed=3))
    hit = noisy != x
    assert hit.sum(1).tolist() == [count] * 20 and bool((noisy[hit] == 2).all())
    assert count in (0, 784) or len({tuple(row.tolist()) for row in hit}) == 20  # other places in each image
    assert torch.equal(pixel_order(20, 784, 3), pixel_order(20, 784, 3))
    assert not torch.equal(pixel_order(20, 784, 3), pixel_order(20, 784, 4))


def test_a_bright_pixel_of_a_coloured_image_is_bright_in_all_channels():
    x = torch.rand(20, 3 * 1024)
    hit = (bright_pixels(x, 0.1, pixel_order(20, 1024, seed=3)) != x).view(20, 3, 1024)
    assert hit.sum(2).tolist() == [[102] * 3] * 20  # a tenth of 1,024 pixels
    assert torch.equal(hit, hit[:, :1].expand(-1, 3, -1))


def test_the_value_is_two_deviations_above_the_mean():
    pixel = (MEAN + 2 * STD - MEAN) / STD
    assert float(bright_pixels(torch.zeros(1, 4), 1, pixel_order(1, 4, 0))[0, 0]) == pytest.approx(pixel)


def test_noise_is_spread_over_the_image():
    hits = (bright_pixels(torch.zeros(2000, 784), 0.1, pixel_order(2000, 784, 0)) != 0).float().sum(0)
    # 2,000 draws of 78 / 784: mean 199, deviation 13.4; six of them
    assert bool(((hits - 2000 * 78 / 784).abs() < 6 * 13.4).all())


# ---- levels ---------------------------------------------------------------------------------------------------------


def kept_by_hand(levels, pruned=0.125):
    """Weights left of each layer at each level."""
    left, out = list(FC), []
    for _ in range(levels):
        out.append(list(left))
        left = [n - round(pruned * n) for n in left]
    return out


def test_densities_of_all_levels(mnist, tmp_path):
    row = tickets.run(tiny(levels="6", epochs="1"), 0, mnist, tmp_path)
    for level, kept in enumerate(kept_by_hand(6)):
        of_kinds = ["winning", "random"] if level else ["winning"]
        for kind in of_kinds:
            found = row[kind][level]
            assert found["density_by_layer"] == [k / n for k, n in zip(kept, FC, strict=True)]
            assert found["density"] == sum(kept) / sum(FC)
    assert row["random"][0] is None and row["accuracy"] == row["winning"][5]["accuracy"]
    assert kept_by_hand(35)[34][0] / FC[0] == pytest.approx(Tickets.density(tiny(), 34), rel=1e-3)


def test_tickets_start_where_the_dense_network_did(mnist, tmp_path, monkeypatch):
    started, train = {}, tickets.TicketRun._train

    def keep(run, model, level, number, what):
        started[level, number] = [(m.weight.detach().clone(), m.weight_mask) for m in model if hasattr(m, "weight")]
        out = train(run, model, level, number, what)
        trained[level, number] = [m.weight.detach().clone() for m in model if hasattr(m, "weight")]
        return out

    trained = {}
    monkeypatch.setattr(tickets.TicketRun, "_train", keep)
    tickets.run(tiny(), 0, mnist, tmp_path)
    dense = [weight for weight, _ in started[0, 0]]
    for level in (1, 2):
        for number in (0, 1):
            for (weight, mask), start, after in zip(started[level, number], dense, trained[level, number], strict=True):
                assert torch.equal(weight, torch.where(mask, start, 0)) and bool((after[~mask] == 0).all())
    for layer, (weight, (_, mask)) in enumerate(zip(trained[0, 0], started[1, 0], strict=True)):
        assert float(weight.abs()[mask].min()) >= float(weight.abs()[~mask].max())  # the smallest went
        assert not torch.equal(mask, started[1, 1][layer][1])  # and others at random


def test_the_best_epoch_is_kept_and_patience_ends_a_level(mnist, tmp_path, monkeypatch):
    reached = iter([0.5, 0.7, 0.6, 0.7, 0.6, 0.9])
    models, accuracy = [], tickets.accuracy

    def validation(model, images, batch):
        if len(images[0]) != 100:
            return accuracy(model, images, batch)
        models.append([p.detach().clone() for p in model.parameters()])
        return next(reached)

    monkeypatch.setattr(tickets, "accuracy", validation)
    config = tiny(levels="1", epochs="9", patience="3")
    state = tickets.TicketState(config.to_dict(), 0, 1)
    run = tickets.TicketRun(config, state, mnist, lambda *step: None)
    out = run._train(run.model, 0, 0, "")
    assert out == {"validation": 0.7, "best_epoch": 2, "epochs": 5}  # three after the second were no better
    assert all(torch.equal(p, kept) for p, kept in zip(run.model.parameters(), models[1], strict=True))


def test_a_stopped_run_resumes_to_the_same_numbers(mnist, tmp_path):
    config = tiny()
    last = "random ticket, level 3 of 3"
    whole, seen = resumes_to_the_same(tickets.run, config, mnist, tmp_path, lambda _, what: what == last, tickets.KINDS)
    assert seen[0][2] == "winning ticket, level 3 of 3" and seen[-1][0] <= seen[-1][1] == config.steps
    assert [len(f["noise_accuracy"]) for f in whole["winning"] if "noise_accuracy" in f] == [2, 2]
    # no noise
    assert whole["winning"][0]["noise_accuracy"][0] == whole["winning"][0]["accuracy"]
