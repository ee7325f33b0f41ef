"""What is remembered of a tensor, for as long as it lives."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any

from torch import Tensor


class ByIdentity:
    """Values by tensor, forgotten with it: torch's WeakIdKeyDictionary with a look-up that costs a tenth.

    A training step looks up some twenty times.
    """

    def __init__(self):
        self._entries: dict[int, tuple[weakref.ref, Any]] = {}

    def get(self, tensor: Tensor, default=None):
        entry = self._entries.get(id(tensor))
        return default if entry is None or entry[0]() is not tensor else entry[1]

    def __setitem__(self, tensor: Tensor, value) -> None:
        entries, key = self._entries, id(tensor)

        def forget(dead: weakref.ref) -> None:
            entry = entries.get(key)
            if entry is not None and entry[0] is dead:  # not a newer tensor's at the same address
                del entries[key]

        entries[key] = weakref.ref(tensor, forget), value

    def __contains__(self, tensor: Tensor) -> bool:
        entry = self._entries.get(id(tensor))
        return entry is not None and entry[0]() is tensor

    def pop(self, tensor: Tensor, default=None):
        value = self.get(tensor, default)
        if tensor in self:
            del self._entries[id(tensor)]
        return value

    def __iter__(self) -> Iterator[Tensor]:
        alive = [reference() for reference, _ in list(self._entries.values())]  # one may die meanwhile
        return iter([tensor for tensor in alive if tensor is not None])

    def __len__(self) -> int:
        return len(self._entries)
