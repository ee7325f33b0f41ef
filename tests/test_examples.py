"""The examples, at tiny sizes: what they compare agrees, and what they print comes from it."""

import importlib.util
import re
from pathlib import Path

import pytest
import torch
from dendrite_lab.data import MNIST
from dendrite_lab.errors import LabError
from typer.testing import CliRunner

import dendrite_kernels as dk
from dendrite_kernels.factored import FactoredGrad
from dendrite_kernels.testing import assert_close, rounding

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def load(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def sae():
    return load("topk_sae")


def both_ways(sae, dtype=torch.float64, width=12, latents=40, k=5):
    ways = sae.TopKAutoencoder(width, latents, k), sae.DenseAutoencoder(width, latents, k)
    for model in ways:
        sae.initialise(model, torch.Generator().manual_seed(1))
        model.to(dtype)
    return ways


def test_both_autoencoders_take_the_same_steps(sae):
    """Ours against torch.topk, dense products and torch.optim.Adam, in float64: no winner is on a knife edge."""
    ours, dense = both_ways(sae)
    mine = dk.optim.Adam(ours, 0.01, eps=sae.EPS)
    theirs = torch.optim.Adam(dense.parameters(), 0.01, eps=sae.EPS)
    for _ in range(5):
        x = torch.randn(30, 12, dtype=torch.float64)
        loss, want = sae.train_step(ours, mine, x), sae.train_step(dense, theirs, x)
        assert loss == pytest.approx(want, rel=1e-9)
        for p, q in zip(ours.parameters(), dense.parameters(), strict=True):
            grad = p.grad.to_dense() if isinstance(p.grad, FactoredGrad) else p.grad
            assert_close(grad, q.grad, terms=30 * 40)
            # Adam divides by the gradient's own size: of one as small as eps, rounding is a share of eps / lr
            torch.testing.assert_close(p, q, rtol=0, atol=1e-7)
            with torch.no_grad():
                q.copy_(p)
        assert_close(ours.decoder.weight.norm(dim=0), torch.ones(40, dtype=torch.float64), terms=12)


def test_a_reconstruction_by_hand(sae):
    """Directions along the axes: the k largest positive entries come back, the others are 0."""
    model = sae.TopKAutoencoder(4, 4, 2)
    with torch.no_grad():
        for p in (model.encoder.weight, model.decoder.weight):
            p.copy_(torch.eye(4))
        model.encoder.bias.zero_()
        model.decoder.bias.copy_(torch.tensor([0.0, 0.0, 0.0, 1.0]))
    x = torch.tensor([[3.0, 1.0, 2.0, -4.0], [-1.0, -2.0, 5.0, -3.0]])
    assert model(x).tolist() == [[3.0, 0.0, 2.0, 1.0], [0.0, 0.0, 5.0, 1.0]]
    assert sae.share_alive(model, x) == 0.5


@pytest.mark.parametrize("spoil", ["encoder", "decoder"])
def test_ways_that_disagree_are_not_timed(sae, spoil):
    ours, dense = both_ways(sae, torch.float32)
    x = torch.randn(30, 12)
    assert sae.check_agreement(ours, dense, x) < 1e-5
    with torch.no_grad():
        getattr(dense, spoil).weight.mul_(torch.linspace(0.5, 2, 12 if spoil == "encoder" else 40))
    with pytest.raises(RuntimeError, match="the ways disagree"):
        sae.check_agreement(ours, dense, x)


def test_generated_activations_are_as_stated(sae, monkeypatch):
    raw = sae.generated_activations(4000, 24)
    torch.manual_seed(0)
    directions = torch.randn(96, 24)
    chosen, amplitudes = torch.randint(96, (4000, 16)), torch.randn(4000, 16).abs()
    sums = torch.einsum("nj,njw->nw", amplitudes, (directions / directions.norm(dim=1, keepdim=True))[chosen])
    noise = raw - sums
    # a variance of n normal numbers is off by sqrt(2 / n) of itself
    assert float(noise.var()) == pytest.approx(0.05**2, rel=5 * (2 / noise.numel()) ** 0.5)
    monkeypatch.setattr(sae, "SAMPLES", 4000)
    centred_with_variance_1(*sae.load_activations(None, 24, generated=True), "generated", (4000, 24))


def centred_with_variance_1(x, source, want, shape):
    assert source == want and x.shape == shape
    assert x.mean(0).abs().max() < rounding(x.dtype, len(x))
    assert float(x.std()) == pytest.approx(1, rel=1e-5)


def test_without_mnist_activations_are_generated(sae, monkeypatch):
    def absent(folder, say):
        raise LabError("no source of MNIST is in reach")

    monkeypatch.setattr(sae, "load_mnist", absent)
    monkeypatch.setattr(sae, "SAMPLES", 50)
    assert sae.load_activations(None, 6, generated=False)[1] == "generated"


def test_mnist_goes_through_the_network(sae, monkeypatch):
    images, labels = torch.randint(0, 256, (300, 784), dtype=torch.uint8), torch.randint(0, 10, (300,))
    monkeypatch.setattr(sae, "load_mnist", lambda folder, say: MNIST(images, labels, images[:9], labels[:9]))
    centred_with_variance_1(*sae.load_activations(None, 7, generated=False), "MNIST", (300, 7))


def test_the_command_prints_both_ways(sae, monkeypatch):
    monkeypatch.setattr(sae, "SAMPLES", 500)
    sizes = ["--latents", "64", "--k", "4", "--batch", "32", "--width", "16", "--steps", "30", "--lr", "0.003"]
    result = CliRunner().invoke(sae.app, [*sizes, "--generated"])
    assert result.exit_code == 0, result.output
    rows = re.findall(
        r"^(ours|dense) +([\d.]+) ms a step   loss ([\d.]+) .* ([\d.]+)   latents alive", result.output, re.M
    )
    (ours, _, first, last), (dense, _, other_first, other_last) = rows
    assert (ours, dense) == ("ours", "dense") and first == other_first
    assert float(last) == pytest.approx(float(other_last), rel=0.01) and float(last) < 0.9 * float(first)
    assert "64 latents, k 4, batch 32" in result.output and "times as long" in result.output


@pytest.mark.parametrize("option", [["--k", "65"], ["--k", "0"], ["--steps", "0"]])
def test_the_command_refuses(sae, option):
    result = CliRunner().invoke(sae.app, ["--latents", "64", "--generated", *option])
    assert result.exit_code == 2 and option[0] in result.output
