"""Ranges of sequences."""

import random

from services.metering.audit.ranges import SequenceRange, above, joined, packed, ranges_of, without

Range = SequenceRange


def test_sequences_become_ranges() -> None:
    """Those that follow one another are one."""
    assert ranges_of([1, 2, 3, 7, 9, 10]) == [Range(1, 3), Range(7, 7), Range(9, 10)]
    assert ranges_of([]) == []


def test_ranges_that_touch_are_joined() -> None:
    """A gap of one keeps them apart."""
    assert joined([Range(1, 3), Range(4, 5), Range(7, 9)]) == [Range(1, 5), Range(7, 9)]


def test_taking_out_leaves_what_a_set_would() -> None:
    """Whichever is longer, the ranges or what is taken out."""
    chance = random.Random(3)
    for _ in range(200):
        kept = sorted(chance.sample(range(1, 60), k=chance.randrange(1, 50)))
        out = set(chance.sample(range(1, 60), k=chance.randrange(0, 58)))
        assert without(ranges_of(kept), out) == ranges_of(n for n in kept if n not in out)


def test_only_what_lies_above_is_kept() -> None:
    """A range on the border is cut."""
    assert above([Range(1, 3), Range(5, 9), Range(11, 11)], 6) == [Range(7, 9), Range(11, 11)]


def test_packs_are_bounded() -> None:
    """A range longer than a pack comes alone, and nothing is left out."""
    ranges = [Range(1, 2), Range(4, 4), Range(10, 19), Range(21, 21), Range(23, 24)]
    assert list(packed(ranges, 4)) == [ranges[:2], ranges[2:3], ranges[3:]]
