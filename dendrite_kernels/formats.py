"""The format of what state_dict() gives: its number lies in checkpoints, and one of a newer library is refused."""

from __future__ import annotations

from torch import nn

# Raise it with a change of a state_dict's names or of what they mean, and go on reading the older ones.
# Checkpoints without a number are from before there was one, and of format 1.
FORMAT = 1


def check_format(what: str, found: int | None) -> None:
    """Raises ValueError for a state_dict of a format that this version does not know."""
    if found is None:  # from a class without a number
        return
    if not isinstance(found, int) or not 1 <= found <= FORMAT:
        raise ValueError(
            f"state_dict: expected {what} in format {FORMAT} or before, got format {found}, "
            "which a newer dendrite_kernels wrote: update it to read this checkpoint"
        )


class Versioned(nn.Module):
    """A module whose format torch keeps in a state_dict's metadata, under its name."""

    _version = FORMAT

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *args):
        if type(self)._version == FORMAT:  # else the number is of a subclass, and its own to check
            check_format(f"{type(self).__name__} {prefix.rstrip('.')!r}", local_metadata.get("version", 1))
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)
