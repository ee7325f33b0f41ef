"""Stopping a run in the middle, and going on with it."""

import pytest


class Killed(Exception):
    """What stops it."""


def resumes_to_the_same(run, config, data, folder, when, keys, between=lambda: None):
    """Asserts that a run (seed 3) stopped at the step for which when(done, what) goes on to an unstopped one's numbers.

    keys: of its row, which must be equal where either has them. between(): called before it goes on. Returns the
    unstopped run's row and the steps (done, total, what) that were left to the resumed one.
    """
    whole = run(config, 3, data, folder / "whole")

    def kill(done, total, what):
        if when(done, what):
            raise Killed

    with pytest.raises(Killed):
        run(config, 3, data, folder, progress=kill)
    between()
    steps = []
    resumed = run(config, 3, data, folder, resume=True, progress=lambda *step: steps.append(step))
    assert set(keys) & set(whole)
    for key in keys:
        assert resumed.get(key) == whole.get(key), key
    return whole, steps
