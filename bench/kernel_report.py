"""Compiles every Triton and CUDA kernel ahead of time for every chip, and prints what it takes there; no GPU is needed.

Each launcher of Triton's is run on CPU tensors with its kernels recorded instead of started, so that what is compiled
are the very launches that a GPU would see. Exits with 1 where a kernel spills registers to local memory, takes more
shared memory than the chip has, reads its rows by less than 16 bytes where it is meant to, or is started in more blocks
than a grid may have.

The floor is modelled: the bytes of a launch's tensors over the chip's memory bandwidth. It was not measured.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import cuda_report
import torch
import triton
from rich.console import Console
from rich.progress import track
from rich.table import Table
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from dendrite_kernels.backends import triton as launchers
from dendrite_kernels.backends.triton import adam, ksparse, layer, linear, segments, settings, winners

MODULES = (segments, winners, ksparse, layer, adam)

# chip: (an example, GB/s of its memory, shared memory a block may have in KiB)
CHIPS = {
    80: ("A100", 1555, 163),
    86: ("RTX 3090", 936, 99),
    89: ("RTX 4090", 1008, 99),
    90: ("H100", 3350, 227),
    100: ("B200", 8000, 227),
    120: ("RTX 5090", 1792, 99),
}

# Of csrc/cuda those that setup.py compiles for: the others run one of these, or compile the last one's PTX.
CUDA_CHIPS = (80, 90, 100)

TYPES = {
    torch.float32: "fp32",
    torch.float64: "fp64",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.int32: "i32",
    torch.int64: "i64",
    torch.int8: "i8",
}


@dataclass(frozen=True)
class Launch:
    """A kernel as it was called."""

    kernel: JITFunction
    grid: tuple[int, ...]
    args: tuple
    options: dict
    case: str

    @property
    def name(self) -> str:
        return self.kernel.fn.__name__

    def values(self) -> dict:
        named = dict(zip(self.kernel.arg_names, self.args, strict=False))
        return {**named, **{key: value for key, value in self.options.items() if key in self.kernel.arg_names}}

    def bytes(self) -> int:
        tensors = {t.data_ptr(): t for t in self.values().values() if isinstance(t, torch.Tensor)}
        return sum(t.numel() * t.element_size() for t in tensors.values())

    def too_many_blocks(self) -> bool:
        """On an axis of the grid, of which only the first may be long."""
        return any(blocks > most for blocks, most in zip(self.grid, (2**31 - 1, 65_535, 65_535), strict=False))

    def source(self) -> ASTSource:
        """Signature and specialisation as a call would give them."""
        constants = {p.name for p in self.kernel.params if p.is_constexpr}
        signature, fixed, attributes = {}, {}, {}
        for place, (name, value) in enumerate(self.values().items()):
            if name in constants or (isinstance(value, int) and value == 1):
                signature[name], fixed[name] = "constexpr", value
                continue
            signature[name] = f"*{TYPES[value.dtype]}" if isinstance(value, torch.Tensor) else "i32"
            if isinstance(value, torch.Tensor) or value % 16 == 0:
                attributes[(place,)] = [["tt.divisibility", 16]]
        return ASTSource(fn=self.kernel, signature=signature, constexprs=fixed, attrs=attributes)


@contextmanager
def recorded(case: str, launches: list[Launch]):
    """Kernels called inside are noted, not run."""

    class Recorder:
        def __init__(self, kernel):
            self.kernel = kernel

        def __getitem__(self, grid):
            return lambda *args, **options: launches.append(Launch(self.kernel, grid, args, options, case))

    kernels = [(m, name, f) for m in MODULES for name, f in vars(m).items() if isinstance(f, JITFunction)]
    for module, name, kernel in kernels:
        setattr(module, name, Recorder(kernel))
    try:
        yield
    finally:
        for module, name, kernel in kernels:
            setattr(module, name, kernel)


def all_launches() -> list[Launch]:
    """Every kernel as its launcher starts it: each dtype, the usual sizes and the largest, each option."""
    launches: list[Launch] = []
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        short = TYPES[dtype]
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        for contexts, per_unit in ((1, 10), (10, 10), (64, 100)):
            with recorded(f"{short} G={contexts} S={per_unit}", launches):
                _gates(contexts, 32, per_unit, 784, dtype, wide)
        for batch, units in ((256, 2048), (8, settings.LONGEST_ROW), (8, 16 * settings.LONGEST_ROW)):
            with recorded(f"{short} B={batch} O={units}", launches):
                _winners(batch, units, dtype, wide)
        with recorded(f"{short} B=8", launches):
            _products(8, 2048, 2048, dtype)
        for units in (2048, 10):
            with recorded(f"{short} O={units}", launches):
                _gradients(256, 2048, units, dtype)
        with recorded(f"{short} one launch", launches):
            _layers(8, dtype, wide)
        if dtype == wide:
            with recorded(short, launches):
                _steps(dtype)
    with recorded("fp32, an image's values", launches):  # kwinners2d's rows: compiled as above, on a larger grid
        _winners(8, 64 * 224 * 224, torch.float32, torch.float32)
    return launches


def _gates(contexts, units, per_unit, width, dtype, wide):
    context, weights = torch.zeros(contexts, width, dtype=dtype), torch.zeros(units, per_unit, width, dtype=dtype)
    bias = torch.zeros(units, per_unit, dtype=dtype)
    gate, winner = torch.zeros(contexts, units, dtype=wide), torch.zeros(contexts, units, dtype=torch.int32)
    launchers.segment_gate((gate, winner), context, weights, bias, "abs_max", "sigmoid")
    grads = tuple(torch.zeros_like(t) for t in (context, weights, bias))
    launchers.segment_gate_backward(grads, gate, context, weights, gate, winner, "sigmoid")


def _winners(batch, units, dtype, wide):
    k = units // 20
    y, bias = torch.zeros(batch, units, dtype=dtype), torch.zeros(units, dtype=dtype)
    boost, kept = torch.zeros(units, dtype=wide), torch.zeros(batch, units, dtype=torch.bool)
    index = torch.zeros(batch, dtype=torch.int32)
    shape, one, many = (batch, k), torch.zeros(1, units, dtype=wide), torch.zeros(10, units, dtype=wide)
    sparse = (torch.zeros(shape, dtype=dtype), torch.zeros(shape, dtype=torch.int32), torch.zeros(shape, dtype=wide))
    launchers.gated_kwinners_sparse(sparse, y, one, bias, None, k, "mul", None, False)
    launchers.gated_kwinners((torch.zeros_like(y), kept), y, many, bias, index, k, "add", boost, True, "keep")
    for gate, at in ((one, None), (many, index)):
        grads = tuple(torch.zeros_like(t) for t in (y, gate, bias))
        launchers.gated_kwinners_backward(grads, y, kept, y, gate, bias, at, "mul")


def _products(batch, inputs, units, dtype):
    k = inputs // 20
    values, indices = torch.zeros(batch, k, dtype=dtype), torch.zeros(batch, k, dtype=torch.int32)
    for weight in (torch.zeros(units, inputs, dtype=dtype), torch.zeros(inputs, units, dtype=dtype).T):
        launchers.sparse_linear(torch.zeros(batch, units, dtype=dtype), values, indices, weight, None)


def _gradients(batch, inputs, units, dtype):
    k = inputs // 20
    values, indices = torch.zeros(batch, k, dtype=dtype), torch.zeros(batch, k, dtype=torch.int32)
    weight, dense = torch.zeros(inputs, units, dtype=dtype).T, torch.zeros(batch, units, dtype=dtype)
    out = torch.zeros_like(values), torch.zeros(inputs, units, dtype=dtype).T, None
    launchers.sparse_linear_backward(out, dense, values, indices, weight)
    if units > 100:
        sparse = torch.zeros(batch, units // 20, dtype=dtype)
        entries = sparse, torch.zeros(sparse.shape, dtype=torch.int32)
        linear._gradients_of_sparse_x(*out[:2], dense, *entries, values, indices, weight)
        winners_out = (torch.zeros_like(dense), torch.zeros(1, units), torch.zeros(units, dtype=dtype))
        gate, pre = winners_out[1], sparse.float()
        for relu in (False, True):
            launchers.gated_kwinners_sparse_backward(
                winners_out, sparse, sparse, entries[1], pre, gate, None, units, "mul", relu
            )


def _layers(batch, dtype, wide):
    units, inputs, width, k = 2048, 784, 784, 102
    weight, segments = torch.zeros(units, inputs, dtype=dtype), torch.zeros(units, 10, width, dtype=dtype)
    context, bias = torch.zeros(1, width, dtype=dtype), torch.zeros(units, dtype=dtype)
    gate, winner = torch.zeros(1, units, dtype=wide), torch.zeros(1, units, dtype=torch.int32)
    values, indices = torch.zeros(batch, k, dtype=dtype), torch.zeros(batch, k, dtype=torch.int32)
    out = (gate, winner, values, indices, values.to(wide, copy=True))
    phases, linear._phases = linear._phases, lambda device: [(layer.ALL_PHASES, {"launch_cooperative_grid": True})]
    try:
        for x, at in ((torch.zeros(batch, inputs, dtype=dtype), None), (values.clone(), indices.clone())):
            rest = (None, None, k, "abs_max", "sigmoid", "mul", None, False)
            launchers.dendritic_layer(out, x, at, weight, bias, context, segments, *rest)
    finally:
        linear._phases = phases


def _steps(dtype):
    rules, hyper = torch.zeros(8, 2, dtype=torch.float64), torch.zeros(4, dtype=torch.float64)
    launchers.advance(rules[:, 0].contiguous(), torch.zeros(8, dtype=torch.int8), hyper, rules)
    rule = rules[0]
    p = torch.zeros(2048, 784, dtype=dtype)
    for mask in (None, p.bool()):
        for synapses in (None, (p.clone(), p.clone(), p.clone(), 0.2, True)):
            launchers.adam_dense(p, p.clone(), p.clone(), p.clone(), mask, rule, hyper, synapses)
    segments, touched = torch.zeros(64, 10, 784, dtype=dtype), torch.zeros(64, 10, dtype=torch.int8)
    for contexts, moments in ((1, touched.to(dtype)), (1, segments.clone()), (10, segments.clone())):
        grad, winner = torch.zeros(contexts, 64, dtype=dtype), torch.zeros(contexts, 64, dtype=torch.int32)
        context = torch.zeros(contexts, 784, dtype=dtype)
        for mask in (None, segments.bool()):
            args = (context, winner, touched, moments, moments.clone(), mask, rule, hyper)
            launchers.adam_segments(segments, grad, *args)


def resources(cubin: bytes) -> dict[str, int]:
    """Registers a thread, and bytes of shared and local memory, as cuobjdump reads them."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [tool if tool.exists() else "cuobjdump", "--dump-resource-usage", file.name]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = {key: int(value) for key, value in re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", text)}
    return {"registers": found["REG"], "shared": found["SHARED"], "local": found["LOCAL"] + found["STACK"]}


def compiled(launch: Launch, chip: int) -> dict:
    options = {key: value for key, value in launch.options.items() if key in ("num_warps", "num_stages", "maxnreg")}
    binary = triton.compile(launch.source(), target=GPUTarget("cuda", chip, 32), options=options)
    used = resources(binary.asm["cubin"])
    used["shared"] = max(used["shared"], binary.metadata.shared)
    example, bandwidth, limit = CHIPS[chip]
    wide_loads = bool(re.search(r"ld\.global[^;]*\.v(4\.b32|2\.b64|4\.u32|4\.f32)", binary.asm["ptx"]))
    problems = []
    if used["local"]:
        problems.append(f"{used['local']} bytes of local memory")
    if used["shared"] > 1024 * limit:
        problems.append(f"{used['shared']} bytes of shared memory, more than {limit} KiB")
    if meant_wide(launch) and not wide_loads:
        problems.append("no 16-byte loads")
    return {
        "kernel": launch.name,
        "case": launch.case,
        "chip": f"sm_{chip}",
        "example": example,
        **used,
        "wide_loads": wide_loads,
        "modelled_floor_us": launch.bytes() / bandwidth / 1e3,
        "problems": problems,
    }


def meant_wide(launch: Launch) -> bool:
    """Whether rows are long enough, and of a size, that their loads must be of 16 bytes."""
    values = launch.values()
    if launch.name == "rows":
        return values["O"] % 16 == 0 and values["BLOCK"] // (32 * launch.options["num_warps"]) >= 4
    return False


def distinct(launches: list[Launch]) -> list[Launch]:
    """Without those that compile to the same: the first of each."""
    seen = {}
    for launch in launches:
        source = launch.source()
        key = (launch.name, str(source.signature), str(source.constants), str(source.attrs), str(launch.options))
        seen.setdefault(key, launch)
    return list(seen.values())


def compile_all(work: list[tuple[Launch | Path, int]]) -> Iterator[list[dict]]:
    """The rows of all the work, in as many processes as there are processors. They only compile: forked, they need no
    thread of torch's, and take over the launches, which can't be pickled.
    """
    first = sum(isinstance(what, Path) for what, _ in work)  # whole files: one at a time
    slices = [slice(i, i + 1) for i in range(first)] + [slice(i, i + 8) for i in range(first, len(work), 8)]
    _compile.work = work
    with multiprocessing.get_context("fork").Pool() as pool:
        parts = pool.imap(_compile, slices)
        yield from track(parts, "compiling", total=len(slices), console=Console(stderr=True))


def _compile(part: slice) -> list[dict]:
    rows = []
    for what, chip in _compile.work[part]:
        rows += cuda_report.compiled(what, chip) if isinstance(what, Path) else [compiled(what, chip)]
    return rows


def cuda_work(chips: list[int]) -> list[tuple[Path, int]]:
    """The files of csrc/cuda, for the chips that nvcc knows; the longest first."""
    if cuda_report.nvcc.path() is None:
        print("no nvcc here: csrc/cuda was not compiled", file=sys.stderr)
        return []
    known = cuda_report.known_chips()
    sources = sorted(cuda_report.SOURCES, key=lambda path: path.name != "kwinners_warp.cu")
    return [(source, chip) for source in sources for chip in chips if chip in known]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chips", type=int, nargs="+", default=list(CHIPS), choices=list(CHIPS), metavar="CC")
    parser.add_argument("--json", action="store_true", help="print JSON lines rather than a table")
    parser.add_argument("--only", choices=["triton", "cuda"], help="the kernels of one backend")
    args = parser.parse_args()
    work = cuda_work([c for c in args.chips if c in CUDA_CHIPS]) if args.only != "triton" else []
    launches = all_launches() if args.only != "cuda" else []
    work += [(launch, chip) for launch in distinct(launches) for chip in args.chips]
    rows = [row for part in compile_all(work) for row in part]
    if args.json:
        print("\n".join(json.dumps(row) for row in rows))
    else:
        table = Table("kernel", "case", "chip", "registers", "shared", "local", "16-byte loads", "modelled floor, us")
        for row in rows:
            cells = (
                row["registers"],
                row["shared"],
                row["local"],
                row.get("wide_loads", ""),
                f"{row['modelled_floor_us']:.2f}" if "modelled_floor_us" in row else "",
            )
            table.add_row(row["kernel"], row["case"], row["chip"], *map(str, cells))
        Console(width=120).print(table)
    wrong = [row for row in rows if row["problems"]]
    for row in wrong:
        print(f"{row['kernel']} ({row['case']}) on {row['chip']}: {', '.join(row['problems'])}", file=sys.stderr)
    too_large = [launch for launch in launches if launch.too_many_blocks()]
    for launch in too_large:
        print(f"{launch.name} ({launch.case}): no grid may have {launch.grid} blocks", file=sys.stderr)
    sys.exit(1 if wrong or too_large else 0)


if __name__ == "__main__":
    main()
