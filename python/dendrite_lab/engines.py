"""Which engine carries out the seeds of a command, and what it needs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from .errors import LabError
from .jobs import Job, Tell, one_by_one, side_by_side
from .processes import Processes

ENGINES = ("local", "ray")
MOST_THREADS = 4096  # torch crashes where it is given more than the system has room for


@dataclass(frozen=True)
class Options:
    """What a command says of how its seeds are to be run; None: as documented there."""

    engine: str = "local"
    address: str | None = None
    jobs: int | None = None
    threads: int | None = None
    data: Path | None = None
    seeds: int | None = None  # that were asked for, with those that are finished (default: the jobs that are left)


def check(engine: str, address: str | None, threads: int | None = None) -> None:
    """Raises LabError for an engine that there is not or not here, for an address that it has no use for, and for more
    threads than a process can have.
    """
    if engine not in ENGINES:
        raise LabError(f"--engine: expected {' or '.join(ENGINES)}, got {engine}")
    if address is not None and engine != "ray":
        raise LabError(f"--address {address}: expected with --engine ray only")
    if threads is not None and threads > MOST_THREADS:
        raise LabError(f"--threads: expected at most {MOST_THREADS}, got {threads}")
    if engine == "ray" and find_spec("ray") is None:
        raise LabError("--engine ray: Ray is not installed: pip install 'dendrite_kernels[ray]'")


def carry_out(jobs: list[Job], options: Options, tell: Tell) -> None:
    """Carries out jobs of one experiment: here, in processes of this machine, or on a Ray cluster."""
    if not jobs:
        return
    # torch takes seconds to import: after what needs none of it
    import torch

    from .board import console
    from .datasets import load
    from .train import check_backend, check_device

    first = jobs[0]
    check_device(first.device)
    if options.engine == "local":  # a cluster's machines have their own
        check_backend(first.device)
    get = partial(load, first.config.dataset, options.data)
    data = get(say=console.print)  # once before all processes do: it may have to be fetched
    slots = min(options.jobs or 1, len(jobs))
    # by all seeds of the command: a resumed one gives those that had not begun the threads they would have had
    shared = min(options.jobs or 1, options.seeds or len(jobs))
    threads = options.threads or max(1, torch.get_num_threads() // shared)
    if options.engine == "ray":
        from .ray_cluster import Cluster

        cluster = Cluster(options.address, options.jobs or len(jobs), options.threads or 1, data, first.device)
        side_by_side(jobs, cluster, tell)
    elif slots > 1:
        side_by_side(jobs, Processes(slots, threads, get), tell)
    else:
        torch.set_num_threads(threads)
        one_by_one(jobs, data, tell)
