"""Trains a TopK sparse autoencoder with our kernels and in the dense way, from the same start on the same batches.

    python examples/topk_sae.py --latents 16384 --k 32 --batch 1024

It writes an activation x as a sum of a few directions: z = ReLU(TopK(W_enc x + b_enc)), then W_dec z + b_dec. TopK is
k-winner-take-all: of the five products of a step (two forward, three of gradients) only the encoder's own is dense, and
our Adam moves the directions that have ever won. Time and losses are printed once both ways agree at the start.

x is what the second hidden layer of a small network makes of MNIST (found as dendrite_lab finds it), or generated: 16
of 4 * width random directions with amplitudes |N(0, 1)|, and noise N(0, 0.05^2). Needs `pip install .[lab]`.

From Gao et al. 2024, "Scaling and evaluating sparse autoencoders": TopK, decoder columns of norm 1 after each step, the
encoder begun as the decoder's transpose, Adam's eps. Left out: the auxiliary loss that revives dead latents (the share
of living ones is printed), the projection of the decoder's gradient, averaged weights, and a bias before the encoder (x
is centred, and b_enc can do the rest).
"""

from __future__ import annotations

import time
from pathlib import Path
from statistics import median
from typing import Annotated

import torch
import typer
from dendrite_lab.data import load_mnist
from dendrite_lab.errors import LabError
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn
from torch.nn import functional

import dendrite_kernels as dk

EPS = 6.25e-10  # the paper's
SAMPLES = 60000  # as many as MNIST has
console = Console(stderr=True)


class TopKAutoencoder(nn.Module):
    """Ours: activations are KSparse from the encoder to the decoder."""

    def __init__(self, width: int, latents: int, k: int):
        super().__init__()
        self.k = k
        self.encoder = dk.nn.SparseLinear(width, latents)
        self.decoder = dk.nn.SparseLinear(latents, width, input_major=True)

    def encode(self, x: Tensor) -> dk.KSparse:
        return dk.linear_kwinners(x, self.encoder.weight, self.encoder.bias, None, None, self.k, relu=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encode(x))


class DenseAutoencoder(nn.Module):
    """The same with torch.topk and dense products."""

    def __init__(self, width: int, latents: int, k: int):
        super().__init__()
        self.k = k
        self.encoder, self.decoder = nn.Linear(width, latents), nn.Linear(latents, width)

    def encode(self, x: Tensor) -> Tensor:
        top = self.encoder(x).topk(self.k, dim=1)
        return x.new_zeros(len(x), self.encoder.out_features).scatter(1, top.indices, top.values.relu())

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encode(x))


@torch.no_grad()
def initialise(model: nn.Module, generator: torch.Generator) -> None:
    directions = torch.randn(model.encoder.weight.shape, generator=generator)
    model.decoder.weight.copy_(directions.T)
    normalise_decoder(model)
    model.encoder.weight.copy_(model.decoder.weight.T)
    model.encoder.bias.zero_()
    model.decoder.bias.zero_()


@torch.no_grad()
def normalise_decoder(model: nn.Module) -> None:
    weight = model.decoder.weight
    weight /= torch.linalg.vector_norm(weight, dim=0, keepdim=True)


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor) -> float:
    optimizer.zero_grad()
    loss = functional.mse_loss(model(x), x)  # x has variance 1: the share of it that is not explained
    loss.backward()
    optimizer.step()
    normalise_decoder(model)
    return loss.item()


@torch.no_grad()
def check_agreement(ours: TopKAutoencoder, dense: DenseAutoencoder, x: Tensor) -> float:
    """The largest distance of two reconstructions; RuntimeError where it is more than rounding explains.

    A row whose k-th and next activation lie within rounding may win otherwise: at most one in fifty may.
    """
    z, want = ours.encode(x).to_dense(), dense.encode(x)
    alike = ((z != 0) == (want != 0)).all(1)
    distance = float((ours(x) - dense(x))[alike].abs().max())
    rounding = 4 * x.shape[1] * torch.finfo(x.dtype).eps * float(x.abs().max())
    if alike.sum() < 0.98 * len(x) or distance > rounding:
        raise RuntimeError(f"the ways disagree: {int((~alike).sum())} of {len(x)} rows, distance {distance:.2g}")
    return distance


# ---- activations ----------------------------------------------------------------------------------------------------


def mnist_activations(folder: Path | None, width: int) -> Tensor:
    """[N, width] before the ReLU of a 784-512-width-10 network's second hidden layer, after one epoch."""
    data = load_mnist(folder, say=console.print)
    x = data.train_images / 255
    network = nn.Sequential(nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, width), nn.ReLU(), nn.Linear(width, 10))
    optimizer = torch.optim.Adam(network.parameters(), 1e-3, fused=True)
    for rows in track(torch.randperm(len(x)).split(256), "the network on MNIST", console=console):
        optimizer.zero_grad()
        functional.cross_entropy(network(x[rows]), data.train_labels[rows]).backward()
        optimizer.step()
    with torch.no_grad():
        return network[:3](x)


def generated_activations(samples: int, width: int) -> Tensor:
    """[samples, width]: sums of 16 of 4 * width random directions, with noise."""
    directions = functional.normalize(torch.randn(4 * width, width))
    chosen, amplitudes = torch.randint(4 * width, (samples, 16)), torch.randn(samples, 16).abs()
    x = functional.embedding_bag(chosen, directions, per_sample_weights=amplitudes, mode="sum")
    return x + 0.05 * torch.randn(samples, width)


def load_activations(folder: Path | None, width: int, generated: bool) -> tuple[Tensor, str]:
    """Centred, with variance 1; and where they come from."""
    x, source = None, "generated"
    if not generated:
        try:
            x, source = mnist_activations(folder, width), "MNIST"
        except LabError as error:
            console.print(f"no MNIST: {error}", markup=False)
    if x is None:
        x = generated_activations(SAMPLES, width)
    x -= x.mean(0)
    return x / x.std(), source


# ---- the race -------------------------------------------------------------------------------------------------------


def race(x: Tensor, latents: int, k: int, batch: int, steps: int, lr: float) -> dict[str, dict]:
    """For each way: losses, milliseconds a step, and the share of living latents at the end."""
    ways = {"ours": TopKAutoencoder(x.shape[1], latents, k), "dense": DenseAutoencoder(x.shape[1], latents, k)}
    for model in ways.values():
        initialise(model, torch.Generator().manual_seed(0))
    check_agreement(*ways.values(), x[:batch])
    optimizers = {
        "ours": dk.optim.Adam(ways["ours"], lr, eps=EPS),
        "dense": torch.optim.Adam(ways["dense"].parameters(), lr, eps=EPS, fused=True),
    }
    out = {way: {"losses": [], "ms": []} for way in ways}
    for _ in track(range(steps), "both ways in turn", console=console):
        rows = torch.randint(len(x), (batch,))
        for way, model in ways.items():
            begin = time.perf_counter()
            loss = train_step(model, optimizers[way], x[rows])
            out[way]["ms"].append(1e3 * (time.perf_counter() - begin))
            out[way]["losses"].append(loss)
    first, other = (torch.tensor(row["losses"][:3]) for row in out.values())
    if not torch.allclose(first, other, rtol=1e-3, atol=0):  # a winner on an edge changes a loss by less
        raise RuntimeError(f"the ways disagree: first losses {first.tolist()} and {other.tolist()}")
    for way, model in ways.items():
        out[way]["alive"] = share_alive(model, x[:10000])
    return out


@torch.no_grad()
def share_alive(model: nn.Module, x: Tensor) -> float:
    """The share of latents that some row of x makes positive."""
    alive = torch.zeros(model.encoder.out_features, dtype=torch.bool)
    for part in x.split(1000):
        z = model.encode(part)
        alive |= (z.to_dense() if isinstance(z, dk.KSparse) else z).gt(0).any(0)
    return float(alive.float().mean())


def main(
    latents: Annotated[int, typer.Option(min=1, help="Directions to learn.")] = 16384,
    k: Annotated[int, typer.Option(min=1, help="Directions of a sample.")] = 32,
    batch: Annotated[int, typer.Option(min=1, help="Samples a step.")] = 1024,
    width: Annotated[int, typer.Option(min=1, help="Length of an activation.")] = 784,
    steps: Annotated[int, typer.Option(min=1, help="Steps of each way.")] = 60,
    lr: Annotated[float, typer.Option(min=0, help="Adam's learning rate.")] = 1e-3,
    data: Annotated[Path | None, typer.Option(help="Folder of MNIST (default: $DENDRITE_DATA/mnist).")] = None,
    generated: Annotated[bool, typer.Option("--generated", help="Generate activations.")] = False,
    seed: int = 0,
) -> None:
    """Trains a TopK sparse autoencoder with our kernels and in the dense way, and compares time and loss."""
    if k > latents:
        raise typer.BadParameter(f"expected at most as many as latents ({latents}), got {k}", param_hint="--k")
    torch.manual_seed(seed)
    x, source = load_activations(data, width, generated)
    ways = race(x, latents, k, batch, steps, lr)
    threads = torch.get_num_threads()
    print(f"{source} activations {list(x.shape)}, {latents} latents, k {k}, batch {batch}, {threads} threads")
    shown = sorted({0, steps // 4, steps // 2, steps - 1})
    print(f"loss: the share of x's variance that is not explained, at steps {', '.join(map(str, shown))}")
    times = {way: median(row["ms"][steps // 4 :]) for way, row in ways.items()}  # the first steps allocate
    for way, row in ways.items():
        losses = " ".join(f"{row['losses'][step]:.4f}" for step in shown)
        print(f"{way:6} {times[way]:8.1f} ms a step   loss {losses}   latents alive {row['alive']:.1%}")
    ratio = times["dense"] / times["ours"]
    print(f"the dense way takes {ratio:.2f} times as long" + (": here it is the faster one" if ratio < 1 else ""))


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
app.command()(main)

if __name__ == "__main__":
    app()
