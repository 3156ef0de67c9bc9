"""What a write that failed may still write is not reused before its node has seen that nobody writes there."""

from services.master.core import messages as m
from services.master.core.extents import WATCHED_PER_FORGET
from tests.unit.master.transcript import CONFIG, KIB, Cluster


def watched(cluster: Cluster) -> list[m.Forget]:
    return [effect for effect in cluster.held if isinstance(effect, m.Forget) and effect.lengths]


def resting_bytes(cluster: Cluster) -> int:
    return sum(segment.quarantined_bytes for segment in cluster.core.state.segments.values())


def expire(cluster: Cluster, keys: int = 1, copies: int = 1) -> None:
    """Puts that never end: their time is over, and so is what could land late."""
    for number in range(keys):
        assert cluster.start(b"%d" % number, KIB, copies=copies) is not None
    cluster.hold = True
    cluster.pass_time(CONFIG.write_ttl_ms + CONFIG.late_write_ms - 50)
    assert resting_bytes(cluster) == keys * copies * KIB
    assert watched(cluster) == []
    cluster.pass_time(50)


def test_a_write_that_expired_rests_until_its_nodes_have_looked() -> None:
    cluster = Cluster()
    expire(cluster, copies=2)
    assert [effect.lengths for effect in watched(cluster)] == [[KIB], [KIB]]
    cluster.pass_time(60_000)
    assert resting_bytes(cluster) == 2 * KIB
    cluster.acknowledge()
    assert resting_bytes(cluster) == 0


def test_a_copy_that_failed_rests_until_its_node_has_looked() -> None:
    cluster = Cluster()
    started = cluster.start(b"k", KIB, copies=2)
    assert started is not None
    cluster.end(started, failed=((0, 0, 1),))
    cluster.hold = True
    cluster.pass_time(CONFIG.late_write_ms)
    assert len(watched(cluster)) == 1
    assert resting_bytes(cluster) == KIB
    cluster.acknowledge()
    assert resting_bytes(cluster) == 0


def test_what_others_wait_for_does_not_wait_for_writers() -> None:
    cluster = Cluster(nodes=1)
    cluster.put(b"gone", KIB)
    cluster.start(b"k", KIB)
    cluster.hold = True
    cluster.pass_time(CONFIG.write_ttl_ms + CONFIG.late_write_ms - 50)
    cluster.now += 50
    call = cluster.call()
    cluster.step(m.Remove(call, b"remove".ljust(16), [b"gone"]))
    assert len(watched(cluster)) == 1
    plain = [effect for effect in cluster.held if effect not in watched(cluster)]
    assert len(plain) == 1
    cluster.step(m.Ack(1, 7, [plain[0].command_id]))
    assert call in cluster.answers
    assert resting_bytes(cluster) == KIB


def test_one_writer_holds_up_few_others() -> None:
    cluster = Cluster(nodes=1, capacity=256 * KIB)
    expire(cluster, keys=WATCHED_PER_FORGET + 1)
    assert [len(effect.lengths) for effect in watched(cluster)] == [WATCHED_PER_FORGET, 1]


def test_a_node_that_attaches_again_is_asked_again() -> None:
    cluster = Cluster(nodes=1)
    expire(cluster)
    cluster.held = []
    cluster.step(m.Broken(1))
    cluster.attach(0, stream=9, epoch=7)
    assert [(effect.stream, effect.lengths) for effect in watched(cluster)] == [(9, [KIB])]
    assert resting_bytes(cluster) == KIB
    cluster.acknowledge()
    assert resting_bytes(cluster) == 0


def test_after_a_restart_of_the_master_free_space_is_asked_about_piece_by_piece() -> None:
    cluster = Cluster(nodes=0)
    cluster.infos = [m.SegmentInfo(18 * KIB)]
    cluster.attach(0, epoch=6)  # it obeyed another master before
    assert resting_bytes(cluster) == 18 * KIB
    cluster.hold = True
    cluster.pass_time(CONFIG.write_ttl_ms + CONFIG.late_write_ms)
    (effect,) = watched(cluster)
    assert effect.lengths == [4 * KIB] * 4 + [2 * KIB]
    cluster.acknowledge()
    assert resting_bytes(cluster) == 0
