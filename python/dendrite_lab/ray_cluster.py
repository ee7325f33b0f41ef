"""The engine of a Ray cluster: a task a run, wherever there is room. All nodes share the folder of states."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from dataclasses import replace

from .errors import LabError
from .jobs import End, Failed, Job, Seldom, Step, attempt

# Ray reads these when it is imported: nothing is reported to its makers, and nothing about it printed.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import ray
from ray.util.queue import Queue

PATIENCE = 0.2  # seconds to wait for a run to end before the steps of all are asked for
STORE = 2**30  # bytes that a cluster started here keeps for data sets


class Cluster:
    """An Engine (see jobs.py).

    Args:
        address: of the cluster; None for $RAY_ADDRESS, or else a cluster started on this machine, which ends with it.
        threads: CPUs that each run takes, and its thread count.
        data: the data set; Ray brings it to the nodes.
        device: cpu, or cuda for a GPU a run.

    Raises LabError: no cluster answers at the address, or no node of it has room for a run.
    """

    def __init__(self, address: str | None, slots: int, threads: int, data, device: str = "cpu"):
        self.slots, self.threads = slots, threads
        _connect(address or os.environ.get("RAY_ADDRESS") or "local")
        try:
            wanted = {"CPU": threads, "GPU": int(device == "cuda")}
            _check_room(wanted)
            self._task = ray.remote(_work).options(num_cpus=threads, num_gpus=wanted["GPU"], max_retries=0)
            self._steps, self._data = Queue(actor_options={"num_cpus": 0}), ray.put(data)
        except BaseException:
            ray.shutdown()
            raise
        self._going: dict[ray.ObjectRef, Job] = {}

    def start(self, job: Job) -> None:
        job = replace(job, out=job.out.absolute())  # a node's working folder is another
        self._going[self._task.remote(job, self._data, self.threads, self._steps)] = job

    def events(self) -> Iterator[Step | End]:
        try:
            ended, _ = ray.wait(list(self._going), timeout=PATIENCE)
            yield from self._steps.get_nowait_batch(self._steps.qsize())  # of the ended ones too
        except ray.exceptions.RayError as error:
            raise LabError(
                f"the Ray cluster does not answer ({error}): --resume goes on with what its runs had saved"
            ) from None
        for task in ended:
            job = self._going.pop(task)
            try:
                yield ray.get(task)
            except ray.exceptions.RayError as error:  # its process or its node is gone
                yield Failed(job.seed, f"its Ray task ended: {error}")

    def stop(self) -> None:
        ray.shutdown()  # which ends this driver's tasks


def _work(job: Job, data, threads: int, steps: Queue) -> End:
    """What a task does: its job, with its steps put into the queue."""
    import torch

    torch.set_num_threads(threads)
    return attempt(job, lambda: data, Seldom(steps.put))


def _connect(address: str) -> None:
    quiet = {"logging_level": "error", "log_to_driver": False}
    if address == "local":
        ray.init(address, include_dashboard=False, object_store_memory=STORE, **quiet)
        return
    ours = {name: value for name, value in os.environ.items() if name.startswith("DENDRITE_")}
    try:
        _check_answers(address)
        ray.init(address, runtime_env={"env_vars": ours}, **quiet)
    except (OSError, RuntimeError, ValueError) as error:
        raise LabError(f"--address {address}: no Ray cluster answers there ({error})") from None


def _check_answers(address: str) -> None:
    """Raises OSError where nothing listens at host:port: Ray would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=10).close()


def _check_room(wanted: dict[str, int]) -> None:
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(all(node.get(what, 0) >= count for what, count in wanted.items()) for node in nodes):
        asked = " and ".join(f"{count} {what}" for what, count in wanted.items() if count)
        raise LabError(f"--threads, --device: no node of the Ray cluster has {asked} for a run")
