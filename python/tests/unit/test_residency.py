"""What events tell about where blocks are stored."""

from __future__ import annotations

from kvstored.vllm.residency import REMOVED, STORED, Residency

CACHE, POSIX, OBJECT = 0, 1, 2
MEDIA = ["CPU", "STORAGE", "STORAGE"]
A, B, C = b"a" * 32, b"b" * 32, b"c" * 32


def test_a_block_is_stored_once() -> None:
    residency = Residency(MEDIA, 1, 100)
    assert residency.apply([(STORED, CACHE, 0, A), (STORED, CACHE, 0, B)]) == ({"CPU": [A, B]}, {})
    assert residency.apply([(STORED, CACHE, 0, A)]) == ({}, {})
    assert residency.apply([(STORED, POSIX, 0, A)]) == ({"STORAGE": [A]}, {})
    assert residency.apply([(STORED, OBJECT, 0, A), (REMOVED, POSIX, 0, A)]) == ({}, {}), "the same medium"
    assert residency.apply([(REMOVED, CACHE, 0, A), (REMOVED, OBJECT, 0, A)]) == ({}, {"CPU": [A], "STORAGE": [A]})
    assert len(residency) == 1


def test_what_comes_and_goes_within_a_batch_does_not_show() -> None:
    residency = Residency(MEDIA, 1, 100)
    assert residency.apply([(STORED, CACHE, 0, A), (REMOVED, CACHE, 0, A)]) == ({}, {})
    residency.apply([(STORED, CACHE, 0, B)])
    assert residency.apply([(REMOVED, CACHE, 0, B), (STORED, CACHE, 0, B)]) == ({}, {})
    assert len(residency) == 1


def test_every_rank_has_to_hold_its_part() -> None:
    residency = Residency(MEDIA, 2, 100)
    assert residency.apply([(STORED, CACHE, 0, A), (STORED, POSIX, 1, A)]) == ({}, {})
    assert residency.apply([(STORED, CACHE, 1, A)]) == ({"CPU": [A]}, {})
    assert residency.apply([(STORED, OBJECT, 0, A)]) == ({"STORAGE": [A]}, {}), "in different tiers of one medium"
    assert residency.apply([(REMOVED, CACHE, 0, A)]) == ({}, {"CPU": [A]})
    assert residency.apply([(REMOVED, CACHE, 1, A)]) == ({}, {}), "told already"


def test_blocks_never_told_of_are_not_removed() -> None:
    residency = Residency(MEDIA, 1, 100)
    assert residency.apply([(REMOVED, CACHE, 0, A)]) == ({}, {})
    assert residency.apply([(STORED, 7, 0, A), (STORED, CACHE, 1, A), (STORED, CACHE, -1, A)]) == ({}, {})
    assert len(residency) == 0


def test_forgotten_blocks_are_removed_in_case_they_were_told_of() -> None:
    residency = Residency(MEDIA, 2, 2)
    for block in (A, B, C):
        residency.apply([(STORED, CACHE, 0, block), (STORED, CACHE, 1, block)])
    assert residency.forgot and len(residency) == 2
    assert residency.apply([(REMOVED, CACHE, 0, A), (REMOVED, CACHE, 1, A)]) == ({}, {"CPU": [A]})


def test_clearing_tells_what_was_stored() -> None:
    residency = Residency(MEDIA, 2, 100)
    residency.apply([(STORED, CACHE, rank, block) for rank in (0, 1) for block in (A, B)])
    residency.apply([(STORED, POSIX, 0, A), (STORED, POSIX, 1, B)])
    assert residency.clear() == {"CPU": [A, B]}
    assert residency.clear() == {} and len(residency) == 0
    assert residency.apply([(REMOVED, CACHE, 0, A)]) == ({}, {})
