"""Contexts found while training: batches of one population share a cluster, whose mean is their context."""

from __future__ import annotations

import torch
from scipy.special import fdtr
from torch import Tensor

JOINS_BELOW = 0.9  # of the F distribution function
EXEMPLARS = 256  # that a cluster keeps


class Sample:
    """Samples [N, P] as the test needs them, in float64: mean, distances from it, and scatter (made when asked for)."""

    def __init__(self, x: Tensor):
        x = x.double()
        self.mean = x.mean(0)
        self.centred = x - self.mean
        self._scatter = None

    @property
    def scatter(self) -> Tensor:
        if self._scatter is None:
            self._scatter = self.centred.T @ self.centred
        return self._scatter


def hotelling_cdf(a: Sample, b: Sample) -> float:
    """How surely two samples [N, P] and [M, P] differ in their means: F's distribution function at Hotelling's T2.

    The inverse of the pooled covariance is a pseudo-inverse, as pixels may be constant or there may be fewer samples
    than dimensions. Where so few samples leave F no degrees of freedom, the covariance's rank stands for P.

    Equivalent to: scipy.stats.f(P, N + M - P - 1).cdf(T2 * (N + M - P - 1) / (P * (N + M - 2)))

    Source: Hotelling 1931; its use here Grewal et al. 2021, section 3.3 (training method 2).
    """
    form, rank = _inverse_form(a.scatter + b.scatter, a.mean - b.mean)
    free = len(a.centred) + len(b.centred) - a.centred.shape[1] - 1
    return _cdf(form, a, b, a.centred.shape[1] if free > 0 else rank)


def surely_differ(a: Sample, b: Sample, limit: float) -> bool:
    """Whether a lower bound of T2, a hundredth of its work, is enough to say that hotelling_cdf is not below the limit.

    With v in the range of the scatter W: (v'd)^2 <= (v'Wv) (d'W^+d). Here v is d seen through the first sample.
    """
    dimensions = a.centred.shape[1]
    if len(a.centred) + len(b.centred) - dimensions - 1 <= 0:
        return False
    d = a.mean - b.mean
    v = a.centred.T @ (a.centred @ d)
    spread = float((a.centred @ v).square().sum() + (b.centred @ v).square().sum())
    return spread > 0 and _cdf(float(v @ d) ** 2 / spread, a, b, dimensions) >= limit


def _cdf(form: float, a: Sample, b: Sample, p: int) -> float:
    """F's distribution function for p dimensions, where form is d' (scatter)^+ d."""
    n, m = len(a.centred), len(b.centred)
    if p == 0:
        return 0.0  # neither sample varies
    # T2 is form * (n + m - 2) * n * m / (n + m)
    return float(fdtr(p, n + m - p - 1, form * n * m / (n + m) * (n + m - p - 1) / p))


def _inverse_form(scatter: Tensor, d: Tensor) -> tuple[float, int]:
    """d' scatter^+ d and the rank of the scatter."""
    varies = scatter.diagonal() > 0  # the other rows are zero: a third of MNIST's
    scatter, d = scatter[varies][:, varies], d[varies]
    if not len(d):
        return 0.0, 0
    values, vectors = torch.linalg.eigh(scatter)
    kept = values > values[-1] * len(values) * torch.finfo(values.dtype).eps
    return float(((vectors.T @ d).square()[kept] / values[kept]).sum()), int(kept.sum())


class Clusters:
    """Clusters in the order of their founding; which exemplars they keep is drawn from the generator."""

    def __init__(self, generator: torch.Generator):
        self.generator = generator
        self.prototypes: list[Tensor] = []  # of [P], float64: the mean of all samples that joined
        self.counts: list[int] = []  # of those samples
        self.exemplars: list[Tensor] = []  # of [up to EXEMPLARS, P]
        self._tested: list[Sample] = []  # of the exemplars

    def __len__(self) -> int:
        return len(self.counts)

    def add(self, batch: Tensor) -> int:
        """Puts a batch [B, P] into the first cluster that it may be of, else into a new one; returns its number."""
        sample = Sample(batch)
        for number, kept in enumerate(self._tested):
            if not surely_differ(kept, sample, JOINS_BELOW) and hotelling_cdf(kept, sample) < JOINS_BELOW:
                self._join(number, sample, batch)
                return number
        self.prototypes.append(sample.mean)
        self.counts.append(len(batch))
        self.exemplars.append(batch[:EXEMPLARS].clone())
        self._tested.append(Sample(self.exemplars[-1]))
        return len(self) - 1

    def _join(self, number: int, sample: Sample, batch: Tensor) -> None:
        self.counts[number] += len(batch)
        share = len(batch) / self.counts[number]
        self.prototypes[number] = torch.lerp(self.prototypes[number], sample.mean, share)
        self.exemplars[number] = self._renewed(self.exemplars[number], batch)
        self._tested[number] = Sample(self.exemplars[number])

    def _renewed(self, kept: Tensor, batch: Tensor) -> Tensor:
        """Exemplars of both in proportion to their numbers, so that no odd first batch is all that a cluster knows."""
        both = len(kept) + len(batch)
        if both <= EXEMPLARS:
            return torch.cat([kept, batch])
        stay = EXEMPLARS * len(kept) // both
        return torch.cat([self._some(kept, stay), self._some(batch, EXEMPLARS - stay)])

    def _some(self, x: Tensor, count: int) -> Tensor:
        return x[torch.randperm(len(x), generator=self.generator)[:count]]

    def state(self) -> dict:
        lists = {"prototypes": self.prototypes, "counts": self.counts, "exemplars": self.exemplars}
        return {**lists, "generator": self.generator.get_state()}

    def load(self, state: dict) -> None:
        self.prototypes, self.counts, self.exemplars = (list(state[k]) for k in ("prototypes", "counts", "exemplars"))
        self.generator.set_state(state["generator"])
        self._tested = [Sample(exemplars) for exemplars in self.exemplars]
