"""What of PyTorch each op and module goes with: a matrix, every cell of it tested, or refused with a sentence.

A cell runs its column's check (matrix_checks.py) on its row (matrix_cases.py) or, where REFUSED has words for it, the
check must raise them. The matrix is in pytest's summary.
"""

from functools import partial

import pytest
import torch
import torch.utils.checkpoint
from matrix_cases import MODULES, OPS
from matrix_checks import COLUMNS, OF_MODULES, is_outside_autograd, recorded

import dendrite_kernels as dk
from dendrite_kernels.nn import DendriticMLP, KWinners, KWinners2d

# torch's own products and convolutions: differentiable as often as you like
PLAIN = {"sparse_linear, dense", "SparseLinear", "SparseConv2d"}
OTHERWISE = {("rezero_", column): is_outside_autograd for column in ("jvp", "2nd order")}
REFUSED = {
    "jvp": "forward-mode derivatives are not implemented; use reference.py",
    "2nd order": "second derivatives are not implemented; detach, or use reference.py",
}
SLOW = {"inductor"}
QUICK_INDUCTOR = {"gated_kwinners", "DendriticLinear"}


def refusal(case, column):
    if column == "jit.script":
        return "torch.jit.script can't compile it .*; use torch.compile, torch.export or torch.jit.trace"
    return None if case.name in PLAIN or (case.name, column) in OTHERWISE else REFUSED.get(column)


def cells():
    for case in (*OPS, *MODULES):
        for column in {**COLUMNS, **(OF_MODULES if case.is_module else {})}:
            marks = []
            if column in SLOW and case.name not in QUICK_INDUCTOR:
                marks.append(pytest.mark.slow)
            if column == "jit.trace":  # it warns of each size that Python looks at
                marks.append(pytest.mark.filterwarnings("ignore"))
            if column == "CUDA graph":
                marks += [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here")]
            yield pytest.param(case, column, marks=marks, id=f"{case.name}-{column}")


seen = {}


class Summary:
    @staticmethod
    def pytest_terminal_summary(terminalreporter):
        columns = [*COLUMNS, *OF_MODULES]
        terminalreporter.section("feature matrix")
        terminalreporter.write_line(" " * 26 + "  ".join(c.rjust(7) for c in columns))
        for case in (*OPS, *MODULES):
            cells = [seen.get((case.name, c), "." if case.is_module or c in COLUMNS else "") for c in columns]
            widths = [max(len(c), 7) for c in columns]
            row = "  ".join(cell.rjust(width) for cell, width in zip(cells, widths, strict=True))
            terminalreporter.write_line(case.name.ljust(26) + row)
        terminalreporter.write_line(
            "yes: tested; refused: by a sentence, tested; .: not run here (slow; CUDA graph: unverified, wants a GPU)"
        )


@pytest.fixture(scope="module", autouse=True)
def printed(request):
    """The matrix, in the terminal's summary."""
    request.config.pluginmanager.register(Summary())


@pytest.mark.parametrize("case, column", list(cells()))
def test_cell(case, column):
    check = OTHERWISE.get((case.name, column), {**COLUMNS, **OF_MODULES}[column])
    words = refusal(case, column)
    seen[case.name, column] = "FAILED"
    if words is None:
        check(case)
        seen[case.name, column] = "yes"
    else:
        with pytest.raises(RuntimeError, match=words):
            check(case)
        seen[case.name, column] = "refused"


def test_the_rows_call_every_op_that_is_registered():
    called = {op._schema.name for case in (*OPS, *MODULES) for op in recorded(case)}
    registered = {n for n in torch._C._dispatch_get_all_op_names() if n.startswith("dendrite_kernels::")}
    in_compiled_programs = {"dendrite_kernels::second_pass"}  # test_compile.py
    assert called | in_compiled_programs == registered and not called & in_compiled_programs


def test_the_rows_are_all_that_is_public():
    rows = {case.name.split(",")[0] for case in (*OPS, *MODULES)}
    public = {name for name in dk.__all__ if callable(getattr(dk, name)) and name in dir(dk.ops)}
    modules = {n for n in dk.nn.__all__ if isinstance(getattr(dk.nn, n), type)}
    assert rows - {"KSparse.to_dense"} == (public - {"KSparse"}) | modules


def test_a_transform_inside_another_hides_nothing_from_it():
    """What the inner transform calls, the outer one differentiates, and plain autograd around both; not twice."""
    y, weight = torch.randn(6, 12, dtype=torch.float64), torch.randn(20, 12, dtype=torch.float64)

    def ours(y, weight):
        return dk.linear_kwinners(y, weight, None, None, None, 4).values.sin().sum()

    def oracle(y, weight):
        return dk.reference.linear_kwinners(y, None, weight, k=4)[0].sin().sum()

    def value_within(f, weight):
        return torch.func.grad(lambda s: ((value := f(s * y, weight)), value), has_aux=True)(y.new_ones(()))[1]

    def gradient_within(weight):
        return torch.func.grad(ours)(y, weight).square().sum()

    want = torch.func.grad(partial(value_within, oracle))(weight)
    torch.testing.assert_close(torch.func.grad(partial(value_within, ours))(weight), want)
    leaf = weight.clone().requires_grad_()
    torch.testing.assert_close(torch.autograd.grad(value_within(ours, leaf), leaf)[0], want)
    with pytest.raises(RuntimeError, match="second derivatives are not implemented"):
        torch.func.grad(gradient_within)(weight)
    with pytest.raises(RuntimeError, match="second derivatives are not implemented"):
        gradient_within(leaf).backward()


# ---- k winners in training, whose buffers count them ----------------------------------------------------------------


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_layer_that_a_checkpoint_runs_again_counts_its_winners_once(reentrant):
    models = [DendriticMLP(12, (20, 16), 5, 4, 7, percent_on=0.3) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    x, context = torch.randn(6, 12, requires_grad=True), torch.randn(1, 7)
    models[0](x, context).sum().backward()
    torch.utils.checkpoint.checkpoint(models[1], x, context, use_reentrant=reentrant).sum().backward()
    for (name, mine), theirs in zip(models[1].named_buffers(), models[0].buffers(), strict=True):
        assert torch.equal(mine, theirs), name
    for mine, theirs in zip(models[1].parameters(), models[0].parameters(), strict=True):
        assert torch.equal(mine.grad, theirs.grad)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("layer, shape", [(KWinners, (6, 20)), (KWinners2d, (6, 20, 3, 2))])
def test_boosted_winners_in_a_checkpoint_are_refused(reentrant, layer, shape):
    boosted, y = layer(20, 0.3, boost_strength=1.0), torch.randn(shape, requires_grad=True)
    z = torch.utils.checkpoint.checkpoint(boosted, y, use_reentrant=reentrant)
    with pytest.raises(RuntimeError, match=f"{layer.__name__}: torch.utils.checkpoint would choose other winners"):
        z.sum().backward()


@pytest.mark.parametrize("layer, shape", [(KWinners, (6, 20)), (KWinners2d, (6, 20, 3, 2))])
def test_samples_of_a_vmap_share_no_duty_cycles(layer, shape):
    counting, y = layer(20, 0.3), torch.randn(3, *shape)
    with pytest.raises(RuntimeError, match=f"{layer.__name__}: in training it counts winners in its buffers"):
        torch.func.vmap(counting)(y)
    buffers = {name: torch.stack([t] * 3) for name, t in counting.named_buffers()}
    torch.func.vmap(lambda b, y: torch.func.functional_call(counting, b, (y,)))(buffers, y)
    for i, sample in enumerate(y):
        alone = layer(20, 0.3)
        alone(sample)
        for name, t in alone.named_buffers():
            torch.testing.assert_close(buffers[name][i], t, rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore")
def test_a_trace_of_a_layer_in_training_counts_its_winners():
    layer = KWinners(20, 0.3)
    traced = torch.jit.trace(layer, (torch.randn(6, 20),), check_trace=False)
    layer.duty_cycle.zero_(), layer.learning_iterations.zero_()
    y = torch.randn(6, 20)
    traced(y)
    alone = KWinners(20, 0.3)
    alone(y)
    torch.testing.assert_close(dict(traced.named_buffers()), dict(alone.named_buffers()), rtol=0, atol=0)


@pytest.mark.parametrize("dims", [(0, None), (0, 0)])
@pytest.mark.parametrize("wrong", [-1, 2])
def test_a_context_index_outside_its_sample_is_refused_in_a_vmap(dims, wrong):
    """Numbered on over the samples, it would be the context of another one."""
    y, gates, index = torch.randn(3, 4, 8), torch.rand(3, 2, 8), torch.tensor([0, 1, wrong, 0])
    index = index if dims[1] is None else torch.stack([torch.tensor([0, 1, 1, 0]), index, index])
    with pytest.raises(IndexError, match=rf"context_index: expected values in \[0, 2\), got {wrong}"):
        torch.func.vmap(lambda y, g, i: dk.gated_kwinners(y, g, None, i, 3), (0, *dims))(y, gates, index)
