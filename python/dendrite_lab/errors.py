"""What the command line reports as one sentence and exits with 1 for."""


class LabError(Exception):
    """A mistake in the input or the surroundings, with what to do about it."""
