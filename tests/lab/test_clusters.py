"""Clusters of batches, against numpy and scipy's own tests, and on populations whose clusters are known."""

import numpy as np
import pytest
import torch
from dendrite_lab import clusters
from dendrite_lab.clusters import EXEMPLARS, Clusters, Sample, hotelling_cdf, surely_differ
from scipy import stats


def normal(count, dimensions, seed, mean=0.0):
    """Correlated samples: a fixed mixture of independent ones."""
    mixing = np.random.default_rng(99).normal(size=(dimensions, dimensions))
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(count, dimensions)) @ mixing + mean).float()


def empty(seed=0):
    return Clusters(torch.Generator().manual_seed(seed))


def rows_of(x):
    return {tuple(row) for row in x.tolist()}


def textbook(x, y):
    """Hotelling's two-sample test with numpy's covariance and pseudo-inverse, and scipy's F."""
    x, y = x.double().numpy(), y.double().numpy()
    (n, p), m = x.shape, len(y)
    pooled = ((n - 1) * np.cov(x, rowvar=False) + (m - 1) * np.cov(y, rowvar=False)) / (n + m - 2)
    d = x.mean(0) - y.mean(0)
    t2 = n * m / (n + m) * d @ np.linalg.pinv(np.atleast_2d(pooled), hermitian=True) @ d
    return stats.f(p, n + m - p - 1).cdf(t2 * (n + m - p - 1) / (p * (n + m - 2)))


@pytest.mark.parametrize("n, m, p", [(30, 20, 5), (20, 30, 5), (64, 64, 40), (100, 7, 12), (30, 12, 40)])
@pytest.mark.parametrize("shift", [0.0, 0.5, 3.0])
def test_the_distribution_function_is_the_textbooks(n, m, p, shift):
    x, y = normal(n, p, 1), normal(m, p, 2, shift)
    assert hotelling_cdf(Sample(x), Sample(y)) == pytest.approx(textbook(x, y), rel=1e-7)


@pytest.mark.parametrize("shift", [0.0, 0.4, 1.0])
def test_of_one_dimension_it_is_students_t(shift):
    x, y = normal(40, 1, 3), normal(25, 1, 4, shift)
    p_value = stats.ttest_ind(x[:, 0].double().numpy(), y[:, 0].double().numpy()).pvalue
    assert hotelling_cdf(Sample(x), Sample(y)) == pytest.approx(1 - p_value, rel=1e-9)


def test_constant_and_repeated_pixels_need_the_pseudo_inverse():
    x, y = normal(60, 10, 5), normal(50, 10, 6, 0.3)
    for part in (x, y):
        part[:, 3] = -0.42  # background
        part[:, 7] = part[:, 2]
    assert hotelling_cdf(Sample(x), Sample(y)) == pytest.approx(textbook(x, y), rel=1e-7)


def test_with_fewer_samples_than_dimensions_the_rank_is_the_dimension():
    """Eleven samples in five directions of 40: the test of those five coordinates."""
    low = normal(5, 5, 7), normal(6, 5, 8, 1.0)
    axes = torch.linalg.qr(torch.from_numpy(np.random.default_rng(0).normal(size=(40, 5))))[0].T
    x, y = (part.double() @ axes for part in low)
    assert hotelling_cdf(Sample(x), Sample(y)) == pytest.approx(textbook(*low), rel=1e-6)


def test_samples_that_do_not_vary_join():
    ones = torch.ones(4, 3)
    assert hotelling_cdf(Sample(ones), Sample(ones)) == 0


@pytest.mark.parametrize("p", [3, 30])
def test_the_quick_bound_never_contradicts_the_test(p):
    sure = 0
    for seed, shift in enumerate(np.linspace(0, 20, 60)):
        x, y = Sample(normal(40, p, seed)), Sample(normal(30, p, 1000 + seed, shift))
        if surely_differ(x, y, 0.9):
            sure += 1
            assert hotelling_cdf(x, y) >= 0.9
    assert sure > 5  # else it would save nothing


def two_populations(seed):
    """Batches of 256 in 16 dimensions, of populations a (mean 0) and b (mean 4), in the order a b a b b a."""
    generator = torch.Generator().manual_seed(seed)
    means = [0, 4, 0, 4, 4, 0]
    return [torch.randn(256, 16, generator=generator) + mean for mean in means]


def test_two_populations_make_two_clusters_with_their_means():
    """Seed 3: one where no batch is of the tenth that the test's level sends away."""
    found, given = empty(), two_populations(3)
    assert [found.add(batch) for batch in given] == [0, 1, 0, 1, 1, 0]
    for number, batches in enumerate(([0, 2, 5], [1, 3, 4])):
        mean = torch.cat([given[i] for i in batches]).double().mean(0)
        torch.testing.assert_close(found.prototypes[number], mean, rtol=1e-12, atol=1e-12)
    assert found.counts == [768, 768]


def test_a_tenth_of_a_populations_batches_is_sent_away():
    """The level of the test: cdf >= 0.9 for 10 % of 1,000 pairs from one population, within four deviations."""
    pairs = ((Sample(normal(64, 8, 2 * i)), Sample(normal(64, 8, 2 * i + 1))) for i in range(1000))
    away = sum(hotelling_cdf(*pair) >= 0.9 for pair in pairs)
    assert abs(away - 100) < 4 * np.sqrt(1000 * 0.1 * 0.9)


def test_exemplars_are_renewed_in_proportion_and_what_is_remembered_of_them_is_current():
    batches = [normal(100, 6, 11) + number / 1000 for number in range(4)]  # nearly of one mean, no two rows alike
    found = empty()
    assert [found.add(batch) for batch in batches[:2]] == [0, 0]
    assert torch.equal(found.exemplars[0], torch.cat(batches[:2]))  # there was room for both
    for number, new in ((2, EXEMPLARS - EXEMPLARS * 200 // 300), (3, EXEMPLARS - EXEMPLARS * 256 // 356)):
        before = rows_of(found.exemplars[0])
        assert found.add(batches[number]) == 0
        kept, batch = rows_of(found.exemplars[0]), rows_of(batches[number])
        assert len(found.exemplars[0]) == len(kept) == EXEMPLARS
        assert len(kept & batch) == new and len(kept & before) == EXEMPLARS - new
        assert torch.equal(found._tested[0].mean, Sample(found.exemplars[0]).mean)
    assert found.counts == [400]


def test_which_exemplars_stay_is_drawn_from_the_generator():
    def after(seed):
        found = empty(seed)
        for batch in (normal(256, 6, 11), normal(256, 6, 11).flip(0)):
            assert found.add(batch) == 0
        return rows_of(found.exemplars[0])

    assert after(0) == after(0) and after(0) != after(1)


def test_clusters_go_on_from_their_state():
    given = two_populations(3)
    whole, first, second = empty(), empty(), empty(9)
    numbers = [whole.add(batch) for batch in given]
    for batch in given[:3]:
        first.add(batch)
    second.load(first.state())
    assert [second.add(batch) for batch in given[3:]] == numbers[3:]
    for key in ("prototypes", "exemplars"):
        assert all(torch.equal(a, b) for a, b in zip(second.state()[key], whole.state()[key], strict=True))


def test_a_batch_joins_the_first_cluster_that_takes_it(monkeypatch):
    """Clusters are asked in the order of their founding, by a test that is made to accept all but the first."""
    found = empty()
    for batch in two_populations(3)[:2]:
        found.add(batch)
    asked = []
    monkeypatch.setattr(clusters, "surely_differ", lambda a, b, limit: False)
    monkeypatch.setattr(clusters, "hotelling_cdf", lambda a, b: asked.append(a) or (0.9, 0.8999)[len(asked) - 1])
    tested = found._tested[:2]
    assert found.add(torch.randn(256, 16)) == 1 and asked == tested
