"""The port at which the other ranks come to rank 0, and who is let in.

Anybody can speak to an open port: a scanner, another job, a rank of a run before. So each rank is handed a token of its
own over the process group, and that is all it says. Whoever says something else, or nothing, keeps no rank waiting.
"""

import os
import secrets
import selectors
import socket
import time

HELLO_S = 30.0
LENGTH = 32  # bytes of a token; no more is read of anybody


class Door:
    """Rank 0's port, until `let_in` is done.

    Args:
        num_ranks: all of them, rank 0 too.
    """

    def __init__(self, num_ranks: int) -> None:
        self.tokens = [secrets.token_hex(LENGTH // 2).encode() for _ in range(num_ranks)]
        self.missing = set(range(1, num_ranks))
        if os.environ.get("LOCAL_WORLD_SIZE") == str(num_ranks):
            host, bound = "127.0.0.1", "127.0.0.1"  # all ranks are on this machine
        else:
            host, bound = os.environ["MASTER_ADDR"], ""  # which of its addresses that is elsewhere is not known here
        self.listener = socket.create_server((bound, 0), family=socket.getaddrinfo(host, None)[0][0])
        self.address = host, self.listener.getsockname()[1]
        self.selector = selectors.DefaultSelector()

    def let_in(self) -> dict[int, socket.socket]:
        """The connection of each rank that comes within HELLO_S, by its number; then the port is closed."""
        came, give_up = {}, time.monotonic() + HELLO_S
        self.selector.register(self.listener, selectors.EVENT_READ)
        while self.missing and (left_s := give_up - time.monotonic()) > 0:
            for key, _ in self.selector.select(left_s):
                if key.fileobj is self.listener:
                    self._accept()
                elif (number := self._recognise(key.fileobj, key.data)) is not None:
                    came[number] = key.fileobj
        for key in list(self.selector.get_map().values()):
            key.fileobj.close()
        self.selector.close()
        return came

    def _accept(self) -> None:
        try:
            connection, _ = self.listener.accept()
        except OSError:  # it is gone again
            return
        connection.setblocking(False)
        self.selector.register(connection, selectors.EVENT_READ, bytearray())

    def _recognise(self, connection: socket.socket, said: bytearray) -> int | None:
        """The rank, once somebody has said its token; a stranger is left alone until he has said as much, or goes."""
        try:
            more = connection.recv(LENGTH - len(said))
        except OSError:
            more = b""
        said += more
        if more and len(said) < LENGTH:
            return None
        self.selector.unregister(connection)
        for number in self.missing:
            if secrets.compare_digest(said, self.tokens[number]):
                self.missing.remove(number)
                return number
        connection.close()
        return None


def knock(address: tuple[str, int], token: bytes) -> socket.socket:
    """Another rank's side of the connection.

    Raises:
        ConnectionError: rank 0 cannot be reached.
    """
    try:
        connection = socket.create_connection(address, HELLO_S)
        connection.sendall(token)
        return connection
    except OSError as error:
        raise ConnectionError(f"rank 0 cannot be reached at {spelled(address)}: {error}") from None


def spelled(address: tuple[str, int]) -> str:
    """An address in words; unlike MASTER_PORT the port is not the user's choice."""
    return f"{address[0]}, port {address[1]} (chosen by the system)"
