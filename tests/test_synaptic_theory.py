"""optim.SynapticIntelligence against the theory of its paper (eq. 6 to 14): gradient flow on a quadratic loss."""

import itertools

import pytest
import torch

from dendrite_kernels.optim import SynapticIntelligence

pytestmark = pytest.mark.usefixtures("one_thread")


def descend(hessian, offsets, rate, xi=0.0):
    """SI around gradient descent on E = d^T H d / 2 (eq. 6 to 8) from each of the offsets d [N, n] to the minimum."""
    model = torch.nn.ParameterList([torch.nn.Parameter(offsets.clone())])
    si = SynapticIntelligence(model, torch.optim.SGD(model.parameters(), rate), c=1.0, xi=xi)
    slowest = min(float(v) for v in torch.linalg.eigvalsh(hessian) if v > 1e-9)
    for _ in range(int(18 / (slowest * rate))):  # E falls by e^-36
        model[0].grad = (model[0] @ hessian).detach()
        si.step()
    return si


def theory(hessian, offsets, rate=0.0):
    """The diagonal of Q (eq. 11) for each start, and of its terms' sizes; with a rate, of discrete steps exactly.

    A step of size r multiplies the mode's offset by 1 - r lambda: the integral of e^-(a + b)t becomes a geometric sum.
    """
    values, modes = torch.linalg.eigh(hessian)
    a, b = values[:, None], values[None, :]
    kernel = torch.where(a * b > 1e-12, a * b / (a + b - rate * a * b), 0)
    d = offsets @ modes  # [N, modes]
    terms = torch.einsum("ia,na,ab,nb,ib->niab", modes, d, kernel, d, modes)
    return terms.sum((2, 3)), terms.abs().sum((2, 3))


def some_hessian(n=4):
    modes = torch.linalg.qr(torch.randn(n, n, dtype=torch.float64)).Q
    return modes @ torch.diag(torch.linspace(0.5, 3, n, dtype=torch.float64)) @ modes.T


def test_omega_is_the_diagonal_of_q():
    hessian, offsets, rate = some_hessian(), torch.randn(5, 4, dtype=torch.float64), 0.01
    omega = descend(hessian, offsets, rate).omega["0"]
    torch.testing.assert_close(omega, theory(hessian, offsets, rate)[0], rtol=0, atol=1e-11)
    flow, size = theory(hessian, offsets)
    # rate * lambda / 2 is the relative error of each term of a mode pair, to first order
    assert ((omega - flow).abs() <= 1.1 * rate * 3 / 2 * size).all()


def test_the_omegas_of_all_weights_make_up_the_fall_of_the_loss():
    hessian, offsets, rate = some_hessian(), torch.randn(5, 4, dtype=torch.float64), 0.002
    fall = torch.einsum("ni,ij,nj->n", offsets, hessian, offsets) / 2
    # eq. 2 and 3; every mode's share is off by rate * lambda / 2
    torch.testing.assert_close(descend(hessian, offsets, rate).omega["0"].sum(1), fall, rtol=1.1 * rate * 3 / 2, atol=0)


def test_averaged_over_starts_omega_is_the_hessian():
    """Eq. 12: zero-mean independent offsets of variance sigma^2; all sign patterns of the modes are such a set."""
    hessian, sigma, rate = some_hessian(), 0.7, 0.002
    modes = torch.linalg.eigh(hessian).eigenvectors
    signs = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=4)), dtype=torch.float64)
    omega = descend(hessian, sigma * signs @ modes.T, rate).omega["0"]
    want = sigma**2 * hessian.diagonal() / 2
    assert omega.std(0).max() > 0.1 * want.max()  # single starts are far from it
    torch.testing.assert_close(omega.mean(0), want, rtol=1.1 * rate * 3 / 2, atol=0)


def test_averaged_over_random_starts_omega_is_the_hessian():
    hessian, sigma, rate = some_hessian(), 0.7, 0.01
    omega = descend(hessian, sigma * torch.randn(1000, 4, dtype=torch.float64), rate).omega["0"]
    want, error = sigma**2 * hessian.diagonal() / 2, omega.std(0) / 1000**0.5
    assert ((omega.mean(0) - want).abs() < 4 * error + rate * 3 / 2 * want).all()


def test_a_diagonal_hessian_is_found_from_one_start():
    """Eq. 13 (with the 1/2 of eq. 12), and eq. 5 without damping: Omega = H_kk / 2 wherever training began."""
    curvature, rate = torch.tensor([0.5, 1.0, 2.0, 4.0], dtype=torch.float64), 0.002
    offsets = torch.randn(3, 4, dtype=torch.float64)
    si = descend(torch.diag(curvature), offsets, rate)
    exact = curvature / 2 / (1 - rate * curvature / 2)  # of discrete steps
    torch.testing.assert_close(si.omega["0"], offsets**2 * exact, rtol=1e-9, atol=0)
    si.end_task()
    torch.testing.assert_close(si.importance["0"], exact.expand(3, -1), rtol=1e-6, atol=0)
    torch.testing.assert_close(si.importance["0"], (curvature / 2).expand(3, -1), rtol=1.1 * rate * 2, atol=0)


def test_a_rank_one_hessian_is_found_from_one_start():
    """Eq. 14: omega = d_1^2 H_kk / 2."""
    mode = torch.nn.functional.normalize(torch.randn(4, dtype=torch.float64), dim=0)
    hessian, offsets, rate = 2 * torch.outer(mode, mode), torch.randn(3, 4, dtype=torch.float64), 0.002
    omega = descend(hessian, offsets, rate).omega["0"]
    want = (offsets @ mode).square()[:, None] * hessian.diagonal() / 2
    torch.testing.assert_close(omega, want / (1 - rate), rtol=1e-9, atol=0)
    torch.testing.assert_close(omega, want, rtol=1.1 * rate, atol=0)
