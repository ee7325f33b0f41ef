"""The engine of one machine: a process a run, each with its thread count."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from .jobs import End, Failed, Job, Seldom, Step, attempt

# Not "fork": OpenMP's threads are not in a forked process, which then waits for them for ever.
_CONTEXT = multiprocessing.get_context("spawn")


class Processes:
    """An Engine (see jobs.py). load() returns the data set; every process loads its own."""

    def __init__(self, slots: int, threads: int, load: Callable[[], object]):
        self.slots, self.threads, self.load = slots, threads, load
        self._going: dict[Connection, tuple[Job, BaseProcess]] = {}

    def start(self, job: Job) -> None:
        ours, theirs = _CONTEXT.Pipe(duplex=False)
        process = _CONTEXT.Process(target=_work, args=(job, self.load, self.threads, theirs), daemon=True)
        with _interrupts_ignored():
            process.start()
        theirs.close()  # so that ours ends when the process does
        self._going[ours] = job, process

    def events(self) -> Iterator[Step | End]:
        for connection in wait(list(self._going)):
            try:
                event = connection.recv()
            except (EOFError, OSError):  # it died without a word, or in the middle of one
                event = None
            if event is None or isinstance(event, End):
                job, process = self._going.pop(connection)
                connection.close()
                process.join()
                event = event or Failed(job.seed, f"its process {_ending(process.exitcode)}")
            yield event

    def stop(self) -> None:
        for _, process in self._going.values():
            process.kill()
        for connection, (_, process) in self._going.items():
            process.join()
            connection.close()
        self._going.clear()


def _work(job: Job, load: Callable[[], object], threads: int, connection: Connection) -> None:
    """What a process does: its job, with its steps and its end sent to the one that started it."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    import torch

    torch.set_num_threads(threads)
    connection.send(attempt(job, load, Seldom(connection.send)))


def _end_with_parent() -> None:
    """Ends this process when the one that started it is gone, however it went; states are saved whole or not at all."""
    multiprocessing.parent_process().join()
    os._exit(1)


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """Ctrl-C goes to every process of a terminal: those started meanwhile ignore it, and the first one ends them."""
    if threading.current_thread() is not threading.main_thread():  # which alone may say what is done with signals
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _ending(status: int) -> str:
    if status < 0:
        name = signal.Signals(-status).name
        return f"was ended by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
    return f"ended with status {status}"
