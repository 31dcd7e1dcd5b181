"""Nodes that come when the log does not begin at its beginning any more: a published checkpoint and the rest of the log give them all."""

from __future__ import annotations

import os
import signal
import threading

import grpc
import pytest

from tests.cluster.late_support import (
    ARGUMENTS,
    STREAM,
    Writing,
    changes_of,
    content_of,
    damage,
    first_sequence,
    hung,
    is_trimmed,
    log_first_sequence,
    until,
    uploads_of,
)
from tests.cluster.support import SECONDS_MAX, Cluster
from tests.support.fixtures import later
from tests.support.nats import ask_jetstream
from tests.support.server import ServerProcess
from vecmem.log.failpoints import ENVIRONMENT_VARIABLE

DAMAGED = 3
"""Exit code of a server whose data are damaged."""


def dying_at(failpoint: str) -> dict[str, str]:
    return {**os.environ, ENVIRONMENT_VARIABLE: failpoint}


def lead_alone(cluster: Cluster, node: ServerProcess) -> None:
    """All other nodes die, and this one leads."""
    for other in cluster.nodes:
        if other is not node and other.running:
            other.kill()
    assert cluster.leader() is node


@pytest.fixture
def pair(tmp_path):
    with Cluster(tmp_path, nodes=2, arguments=ARGUMENTS) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def trimmed(tmp_path_factory):
    """One node, whose log was trimmed, and what was written to it; further nodes come and go."""
    with Cluster(tmp_path_factory.mktemp("trimmed"), nodes=1, arguments=ARGUMENTS) as cluster:
        writing = Writing()
        writing.until(cluster.leader(), lambda: is_trimmed(cluster))
        yield cluster, writing


@pytest.fixture
def newcomer(trimmed):
    """A further node of that cluster, not started, and gone after the test."""
    cluster, _ = trimmed
    node = cluster.new_node()
    yield node
    if node.running:
        node.kill()
    cluster.nodes.remove(node)


def test_a_node_that_joins_after_the_trim_serves_the_same(pair):
    writing = Writing()
    writing.until(pair.leader(), lambda: is_trimmed(pair))
    for _ in range(20):
        writing.step(pair.leader())
    leader = pair.leader()
    content, changes = content_of(leader), changes_of(leader)
    newcomer = pair.add_node()
    assert content_of(newcomer, writing.sequence) == content
    assert log_first_sequence(newcomer) != 1
    lead_alone(pair, newcomer)
    assert content_of(newcomer) == content
    assert changes_of(newcomer) == changes
    writing.check_repeats(newcomer)
    writing.step(newcomer)
    newcomer.stop()
    newcomer.start()
    assert pair.leader() is newcomer
    writing.check_repeats(newcomer)


def test_all_data_directories_are_lost_and_nothing_else(pair):
    writing = Writing()
    writing.until(pair.leader(), lambda: is_trimmed(pair))
    content, changes = content_of(pair.leader()), changes_of(pair.leader())
    for node in pair.nodes:
        node.kill()
    newcomer = pair.add_node()
    assert pair.leader() is newcomer
    assert content_of(newcomer) == content
    assert changes_of(newcomer) == changes
    writing.check_repeats(newcomer)


def test_a_node_that_was_away_for_too_long_ends_and_comes_back_whole(pair):
    writing = Writing()
    writing.step(pair.leader())
    leader = pair.leader()
    (other,) = [node for node in pair.nodes if node is not leader]
    content_of(other, writing.sequence)
    hung(other)
    writing.until(leader, lambda: first_sequence(pair) > writing.repeatable[0][1] + 20)
    other.send_signal(signal.SIGCONT)
    assert other.wait(SECONDS_MAX) == 1
    assert "its next start restores it from a published checkpoint" in other.last_words()
    other.start()
    assert content_of(other, writing.sequence) == content_of(leader)
    lead_alone(pair, other)
    writing.check_repeats(other)


def test_a_trim_never_passes_what_is_published(pair):
    writing = Writing()
    stop = threading.Event()
    seen: list[tuple[int, int]] = []

    def watch() -> None:
        while not stop.wait(0.05):
            first = first_sequence(pair)  # before: what is published only grows
            uploads = uploads_of(pair) if first > 1 else []
            seen.append((first, uploads[-1].sequence if len(uploads) >= 2 else 0))

    writing.step(pair.leader())
    watching = threading.Thread(target=watch)
    watching.start()
    try:
        writing.until(pair.leader(), lambda: len({first for first, _ in seen}) >= 4)
    finally:
        stop.set()
        watching.join(SECONDS_MAX)
    assert not watching.is_alive()
    assert all(first <= covered + 1 for first, covered in seen)
    until(lambda: len(uploads_of(pair)) == 2)


@pytest.mark.parametrize(
    "failpoint",
    [
        "after_upload_chunk",
        *(later(name) for name in ("before_upload_check", "before_upload_publish", "after_upload_publish")),
    ],
)
def test_an_uploader_that_dies_leaves_nothing_that_hurts(tmp_path, failpoint):
    with Cluster(tmp_path, nodes=1, arguments=ARGUMENTS) as cluster:
        leader = cluster.leader()
        follower = cluster.new_node(environment=dying_at(failpoint))
        follower.start()
        writing = Writing()
        writing.until(leader, lambda: not follower.running)
        assert follower.wait(SECONDS_MAX) == -signal.SIGKILL
        follower.environment = None
        follower.start()
        writing.until(leader, lambda: is_trimmed(cluster))
        assert content_of(cluster.add_node(), writing.sequence) == content_of(leader)
        until(
            lambda: (
                len(
                    ask_jetstream(cluster.nats, f"STREAM.INFO.OBJ_{STREAM}-checkpoints", {"subjects_filter": ">"})[
                        "state"
                    ]["subjects"]
                )
                == 8
            )
        )


def test_a_leader_that_dies_before_it_trims_trims_later(tmp_path):
    with Cluster(tmp_path, nodes=0, arguments=ARGUMENTS) as cluster:
        leader = cluster.new_node(environment=dying_at("before_published_trim"))
        leader.start()
        writing = Writing()
        cluster.leader()
        writing.step(leader)
        with pytest.raises(grpc.RpcError):
            writing.until(leader, lambda: False)
        assert leader.wait(SECONDS_MAX) == -signal.SIGKILL
        assert first_sequence(cluster) == 1
        leader.environment = None
        leader.start()
        until(lambda: is_trimmed(cluster))


@pytest.mark.parametrize(
    "failpoint",
    [
        later("after_download_chunk"),
        later("after_download"),
        "before_restore_rename",
        later("after_restore_rename"),
        "before_restored_log",
        later("before_restored_checkpoints"),
        later("before_restored_cleanup"),
    ],
)
def test_a_restore_that_is_cut_short_is_completed_by_the_next_start(trimmed, newcomer, failpoint):
    cluster, writing = trimmed
    newcomer.environment = dying_at(failpoint)
    with pytest.raises(RuntimeError, match="exited with -9"):
        newcomer.start()
    newcomer.environment = None
    newcomer.start()
    assert content_of(newcomer, writing.sequence) == content_of(cluster.leader())
    assert log_first_sequence(newcomer) != 1
    assert not any((newcomer.data_dir / name).exists() for name in ("restoring", "restored"))


@pytest.mark.parametrize(
    "failpoint", [later("after_restore_rename"), "before_restored_log", later("before_restored_checkpoints")]
)
def test_an_old_copy_gives_way_wherever_its_restore_is_cut_short(tmp_path, failpoint):
    with Cluster(tmp_path, nodes=2, arguments=ARGUMENTS) as cluster:
        writing = Writing()
        leader = cluster.leader()
        (old,) = [node for node in cluster.nodes if node is not leader]
        writing.step(leader)
        content_of(old, writing.sequence)
        old.stop()
        assert list((old.data_dir / "checkpoints").iterdir())
        writing.until(leader, lambda: first_sequence(cluster) > 40)
        old.environment = dying_at(failpoint)
        with pytest.raises(RuntimeError, match="exited with -9"):
            old.start()
        old.environment = None
        old.start()
        assert content_of(old, writing.sequence) == content_of(leader)
        assert log_first_sequence(old) != 1


def test_a_damaged_object_is_refused_by_name_and_the_older_one_taken(tmp_path):
    with Cluster(tmp_path, nodes=1, arguments=ARGUMENTS) as cluster:
        writing = Writing()
        leader = cluster.leader()
        writing.until(leader, lambda: is_trimmed(cluster))
        until(lambda: len(uploads_of(cluster)) == 2)
        content = content_of(leader)
        leader.kill()  # so that nothing newer is published
        newest, older = uploads_of(cluster)
        damage(cluster, newest)
        newcomer = cluster.add_node()
        assert cluster.leader() is newcomer
        assert content_of(newcomer) == content
        words = newcomer.last_words()
        assert f"{newest.name}/FILES" in words
        assert f"restored from the published checkpoint {older.name}" in words
        writing.check_repeats(newcomer)
        newcomer.kill()
        damage(cluster, older, "MANIFEST")
        another = cluster.new_node()
        with pytest.raises(RuntimeError, match=f"exited with {DAMAGED} ") as refused:
            another.start()
        for named in (f"{newest.name}/FILES", f"{older.name}/MANIFEST"):
            assert named in str(refused.value)
        leader.start()
        assert content_of(leader, writing.sequence) == content


def test_a_log_that_is_gone_is_not_begun_anew_where_checkpoints_are_published(tmp_path):
    with Cluster(tmp_path, nodes=1, arguments=ARGUMENTS) as cluster:
        Writing().until(cluster.leader(), lambda: is_trimmed(cluster))
        cluster.leader().kill()
        ask_jetstream(cluster.nats, f"STREAM.DELETE.{STREAM}")
        with pytest.raises(RuntimeError, match="there is no such stream, and it is not to be made"):
            cluster.add_node()
