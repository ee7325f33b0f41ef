"""What a run leaves in its folder until it has a row: its state, and a lock while a command carries it out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path

from filelock import FileLock, Timeout

from .config import run_name
from .configuration import Configuration
from .errors import Busy, LabError, naming

GROUP_MAY_WRITE = 0o666  # but for the umask


def state_path(folder: Path, config: Configuration, seed: int) -> Path:
    return folder / f"{run_name(config, seed)}.state.pt"


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Keeps other commands from the run of this state. Raises Busy where one has it; a process that ends lets go."""
    path.parent.mkdir(parents=True, exist_ok=True)
    name = path.with_name(f".{path.name}.lock")
    lock = FileLock(name, mode=GROUP_MAY_WRITE)
    with naming(path):
        try:
            lock.acquire(blocking=False)
        except Timeout:
            said = f"another command is running it: wait for that, or give this one another --out ({path})"
            raise Busy(said) from None
    try:
        yield
    finally:
        with suppress(OSError):  # some systems keep what is open
            name.unlink()
        lock.release()


def check_unstarted(path: Path) -> None:
    """Raises LabError where a run has left its state: starting anew would write over it."""
    if path.exists():
        raise LabError(f"{path} is of an unfinished run: --resume goes on with it; delete it to start anew")


def check_may_start(path: Path) -> None:
    """check_unstarted for a command that does not hold the run: Busy where another does."""
    if path.exists():
        with held(path):
            check_unstarted(path)


def remove(path: Path) -> None:
    """Removes what a run has left, for the command that holds it."""
    for left in _left(path):
        left.unlink(missing_ok=True)


def forget(path: Path) -> None:
    """Removes what a run with a row has left, unless another command is running it anew."""
    if _left(path):
        with suppress(Busy), held(path):
            remove(path)


def _left(path: Path) -> list[Path]:
    """Its state, and parts of saves that a kill cut short."""
    return [p for p in (path, *path.parent.glob(f"{escape(path.name)}.part*")) if p.exists()]
