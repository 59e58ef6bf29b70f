"""Who comes to rank 0's port: strangers of every kind, and the ranks, which they neither end nor delay. 2 seconds."""

import socket
import threading
import time
from contextlib import suppress

import pytest
from plants import PASSERS_BY

from grpo.health import door, heartbeat
from grpo.health.door import Door, knock


@pytest.fixture(autouse=True)
def one_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "HELLO_S", 5.0)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")


def is_let_go(connection: socket.socket) -> bool:
    connection.settimeout(5)
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


def test_ranks_are_let_in_by_their_number_past_strangers_of_every_kind() -> None:
    ours, start = Door(3), time.monotonic()
    strangers = [socket.create_connection(ours.address) for _ in PASSERS_BY]
    for stranger, said in zip(strangers, PASSERS_BY.values(), strict=True):
        stranger.setblocking(False)
        with suppress(OSError):
            stranger.sendall(said)
    socket.create_connection(ours.address).close()
    ranks = {number: knock(ours.address, ours.tokens[number]) for number in (2, 1)}
    came = ours.let_in()
    assert time.monotonic() - start < 20 and ours.missing == set() and sorted(came) == [1, 2]
    assert all(came[number].getpeername() == rank.getsockname() for number, rank in ranks.items())
    assert all(is_let_go(stranger) for stranger in strangers)
    for connection in (*strangers, *ranks.values(), *came.values()):
        connection.close()


def test_a_token_that_comes_in_pieces_is_one_and_what_follows_it_is_left_to_read() -> None:
    ours = Door(2)
    rank = socket.create_connection(ours.address)
    rank.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def drip() -> None:
        for piece in (ours.tokens[1][:5], ours.tokens[1][5:31], ours.tokens[1][31:] + b"first words"):
            time.sleep(0.05)
            rank.sendall(piece)

    threading.Thread(target=drip).start()
    (connection,) = ours.let_in().values()
    connection.setblocking(True)
    assert connection.recv(100) == b"first words"
    rank.close(), connection.close()


def test_a_second_one_with_the_token_of_a_rank_that_is_in_is_refused() -> None:
    ours = Door(3)
    first, second = knock(ours.address, ours.tokens[1]), knock(ours.address, ours.tokens[1])
    threading.Timer(0.2, lambda: knock(ours.address, ours.tokens[2])).start()
    came = ours.let_in()
    assert sorted(came) == [1, 2] and came[1].getpeername() == first.getsockname() and is_let_go(second)


def test_the_port_closes_behind_the_last_rank_and_rank_0_s_own_token_opens_nothing() -> None:
    ours = Door(2)
    strange, rank = knock(ours.address, ours.tokens[0]), knock(ours.address, ours.tokens[1])
    assert list(ours.let_in()) == [1] and is_let_go(strange)
    with pytest.raises(ConnectionError, match=r"^rank 0 cannot be reached at 127.0.0.1, port \d+ \(.*refused"):
        knock(ours.address, ours.tokens[1])
    rank.close()


@pytest.mark.parametrize(("local", "bound"), [("3", "127.0.0.1"), ("1", "0.0.0.0")])
def test_only_ranks_of_other_machines_make_the_port_reach_beyond_this_one(monkeypatch, local: str, bound: str) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", local)
    ours = Door(3)
    assert ours.listener.getsockname()[0] == bound
    ours.listener.close()


def test_a_rank_that_does_not_come_is_named_in_time_and_the_others_are_told(monkeypatch, capsys) -> None:
    monkeypatch.setattr(door, "HELLO_S", 1.0)
    monkeypatch.setattr(heartbeat, "GRACE_S", 0.0)
    monkeypatch.setattr(heartbeat, "rank", lambda: 0)
    monkeypatch.setattr(heartbeat, "world_size", lambda: 4)
    monkeypatch.setattr(heartbeat.os, "_exit", lambda code: (_ for _ in ()).throw(SystemExit(code)))
    ranks = []

    def gather_objects(mine: tuple) -> list[tuple]:
        address, tokens = mine[1]
        ranks.append(knock(address, tokens[2]))
        return [mine, *[(["elsewhere", 7], None)] * 3]

    monkeypatch.setattr(heartbeat, "gather_objects", gather_objects)
    start = time.monotonic()
    heart = heartbeat.Heart()
    assert [(wire.rank, wire.process) for wire in heart.wires] == [(2, ["elsewhere", 7])]
    with pytest.raises(SystemExit):
        heart._judge()
    assert time.monotonic() - start < 8
    assert capsys.readouterr().err.startswith("error: [rank 1, 3 start] has not come to 127.0.0.1, port ")
    assert b'{"verdict": {"rank": 1, "code": 1' in ranks[0].recv(1000)
