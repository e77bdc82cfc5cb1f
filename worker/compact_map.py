"""A map from 64-bit hashes to small numbers: 12 bytes a slot, where a dict takes over a hundred bytes an entry.

Imports know a row again by such a hash. Two different texts share one with probability n²/2^65: below one in a million
for four million texts.
"""

from array import array

ALL_BITS = 2**64 - 1


def hash64(*parts: str) -> int:
    """A hash of texts, never 0: Python's own (SipHash, keyed anew in each process), so nothing may keep it."""
    return hash("\0".join(parts)) & ALL_BITS or 1


class CompactMap:
    """Open addressing with linear probing over two arrays; grows by doubling at two thirds."""

    __slots__ = ("_keys", "_mask", "_n", "_values")

    def __init__(self, size: int = 1024) -> None:
        self._keys, self._values = array("Q", bytes(8 * size)), array("I", bytes(4 * size))
        self._mask, self._n = size - 1, 0

    def __len__(self) -> int:
        return self._n

    def get(self, key: int) -> int | None:
        """The value of a key, or None."""
        keys, mask = self._keys, self._mask
        place = key & mask
        while keys[place]:
            if keys[place] == key:
                return self._values[place]
            place = (place + 1) & mask
        return None

    def setdefault(self, key: int, value: int) -> int | None:
        """The value the key had; None when it is new, and now has `value`."""
        keys, mask = self._keys, self._mask
        place = key & mask
        while keys[place]:
            if keys[place] == key:
                return self._values[place]
            place = (place + 1) & mask
        keys[place], self._values[place] = key, value
        self._n += 1
        if 3 * self._n > 2 * len(keys):
            self._grow()
        return None

    def count(self, key: int) -> int:
        """How often the key was counted before."""
        before = self.setdefault(key, 1)
        if before is None:
            return 0
        keys, mask = self._keys, self._mask
        place = key & mask
        while keys[place] != key:
            place = (place + 1) & mask
        self._values[place] = before + 1
        return before

    def _grow(self) -> None:
        old_keys, old_values = self._keys, self._values
        size = 2 * len(old_keys)
        self._keys, self._values = array("Q", bytes(8 * size)), array("I", bytes(4 * size))
        self._mask = mask = size - 1
        keys, values = self._keys, self._values
        for key, value in zip(old_keys, old_values, strict=True):
            if key:
                place = key & mask
                while keys[place]:
                    place = (place + 1) & mask
                keys[place], values[place] = key, value
