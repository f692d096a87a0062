"""Sequences that follow one another, as ranges. Pure."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple


class SequenceRange(NamedTuple):
    """Sequences that follow one another, both ends included."""

    first: int
    last: int

    @property
    def size(self) -> int:
        """How many they are."""
        return self.last - self.first + 1


def ranges_of(sequences: Iterable[int]) -> list[SequenceRange]:
    """`sequences`, which rise, as ranges."""
    return joined(SequenceRange(sequence, sequence) for sequence in sequences)


def joined(ranges: Iterable[SequenceRange]) -> list[SequenceRange]:
    """`ranges`, which rise, those that touch made one."""
    result: list[SequenceRange] = []
    for one in ranges:
        if result and result[-1].last + 1 == one.first:
            result[-1] = SequenceRange(result[-1].first, one.last)
        else:
            result.append(one)
    return result


def without(ranges: Sequence[SequenceRange], sequences: Collection[int]) -> list[SequenceRange]:
    """What is left of `ranges` when `sequences` are taken out."""
    left: list[SequenceRange] = []
    for first, last in ranges:
        inside = sequences if len(sequences) < last - first else [n for n in range(first, last + 1) if n in sequences]
        edges = [first - 1, *sorted(n for n in inside if first <= n <= last), last + 1]
        left += [SequenceRange(a + 1, b - 1) for a, b in pairwise(edges) if b - a > 1]
    return left


def above(ranges: Sequence[SequenceRange], limit: int) -> list[SequenceRange]:
    """What of `ranges` lies above `limit`."""
    return [SequenceRange(max(first, limit + 1), last) for first, last in ranges if last > limit]


def packed(ranges: Iterable[SequenceRange], most: int) -> Iterator[list[SequenceRange]]:
    """`ranges` in groups of at most `most` sequences; one that is longer comes alone."""
    pack: list[SequenceRange] = []
    size = 0
    for one in ranges:
        if pack and size + one.size > most:
            yield pack
            pack, size = [], 0
        pack.append(one)
        size += one.size
    if pack:
        yield pack
