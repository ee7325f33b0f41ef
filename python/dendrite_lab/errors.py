"""What the command line reports as one sentence and exits with 1 for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class LabError(Exception):
    """A mistake in the input or the surroundings, with what to do about it."""


class Busy(LabError):
    """Another command has the run that this one would carry out."""


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Gives an OSError raised inside the path, where it has none: a failed write says why, but not of which file."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def sentence_of(error: Exception) -> str | None:
    """What to say of an error in one sentence; None of one that nobody foresaw."""
    if isinstance(error, LabError):
        return str(error)
    if isinstance(error, OSError):
        return f"{error.filename or 'a file'}: {error.strerror or error}"
    return None
