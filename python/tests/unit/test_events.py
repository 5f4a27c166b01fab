"""What became visible in a tier, and what left it."""

from __future__ import annotations

from support import addresses, blocks, hashes, tensors

from kvstored import Identity, Layout

STORED, REMOVED = 0, 1


def test_stored_and_evicted_blocks_are_told(store, namespace):
    start = store.take_events(0)
    assert len(start) == 0
    names, memory = hashes(5), blocks(5)
    assert namespace.dump(names, addresses(memory)).wait().all_done
    events = store.take_events(start.next)
    assert not events.lost
    assert events.first == start.next + 1
    assert events.next == start.next + 5
    assert events.kinds.tolist() == [STORED] * 5
    assert events.tiers.tolist() == [0] * 5
    assert sorted(events.hashes) == sorted(names)
    assert events.namespaces == [namespace.digest]
    assert namespace.evict(names[3:]) == 2
    later = store.take_events(events.next)
    assert (len(later), later.kinds.tolist(), sorted(later.hashes)) == (2, [REMOVED] * 2, sorted(names[3:]))
    assert len(store.take_events(later.next)) == 0


def test_events_come_in_parts_and_tell_namespaces_apart(store, namespace):
    other = store.open_namespace(Identity(model="other"), Layout.uniform(2, 1, 4096))
    after = store.take_events(0).next
    for target, seed in ((namespace, 1), (other, 2)):
        assert target.dump_tensors(hashes(4, seed), tensors(blocks(4))).wait().all_done
    seen = []
    while part := store.take_events(after, 3):
        assert not part.lost
        assert len(part) <= 3
        assert part.namespace_indices.dtype == "uint16"
        after = part.next
        chosen = [part.namespaces[index] for index in part.namespace_indices]
        seen += list(zip(chosen, part.hashes, strict=True))
    expected = [(namespace.digest, name) for name in hashes(4, 1)] + [(other.digest, name) for name in hashes(4, 2)]
    assert sorted(seen) == sorted(expected)


def test_numbers_of_another_run_are_lost(store):
    assert store.take_events(2**62).lost
    assert store.take_events(1).lost
