"""The port at which the other ranks connect to rank 0, and who is let in.

Anybody can connect to an open port: a scanner, another job, a rank of an earlier run. So each rank gets its own token
over the process group and sends nothing else. A stranger that sends something else, or nothing, delays no rank.
"""

import os
import secrets
import selectors
import socket
import time

HELLO_S = 30.0
LENGTH = 32  # bytes of a token; no more is read of any connection


class Door:
    """Rank 0's port, until `let_in` is done; `num_ranks` includes rank 0."""

    def __init__(self, num_ranks: int) -> None:
        self.tokens = [secrets.token_hex(LENGTH // 2).encode() for _ in range(num_ranks)]
        self.missing = set(range(1, num_ranks))
        if os.environ.get("LOCAL_WORLD_SIZE") == str(num_ranks):
            host, bound = "127.0.0.1", "127.0.0.1"  # all ranks are on this machine
        else:
            host, bound = os.environ["MASTER_ADDR"], ""  # any address: which one other machines reach is unknown here
        self.listener = socket.create_server((bound, 0), family=socket.getaddrinfo(host, None)[0][0])
        self.address = host, self.listener.getsockname()[1]
        self.selector = selectors.DefaultSelector()

    def let_in(self) -> dict[int, socket.socket]:
        """Close the port after HELLO_S, or when all ranks have come; returns their connections by rank."""
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
        except OSError:  # it has left again
            return
        connection.setblocking(False)
        self.selector.register(connection, selectors.EVENT_READ, bytearray())

    def _recognise(self, connection: socket.socket, received: bytearray) -> int | None:
        """The rank whose token this is; None for a part of a token, and for a stranger, whose connection is closed."""
        try:
            more = connection.recv(LENGTH - len(received))
        except OSError:
            more = b""
        received += more
        if more and len(received) < LENGTH:
            return None
        self.selector.unregister(connection)
        for number in self.missing:
            if secrets.compare_digest(received, self.tokens[number]):
                self.missing.remove(number)
                return number
        connection.close()
        return None


def knock(address: tuple[str, int], token: bytes) -> socket.socket:
    """Another rank's side of the connection; ConnectionError if rank 0 cannot be reached."""
    try:
        connection = socket.create_connection(address, HELLO_S)
        connection.sendall(token)
        return connection
    except OSError as error:
        raise ConnectionError(f"rank 0 cannot be reached at {spelled(address)}: {error}") from None


def spelled(address: tuple[str, int]) -> str:
    """An address in words; unlike MASTER_PORT the port is not the user's choice."""
    return f"{address[0]}, port {address[1]} (chosen by the system)"
