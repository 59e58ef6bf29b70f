"""How a request is sent from the trainer to the keeper, and from there to the runner: its call and its length first."""

import struct
from typing import BinaryIO

LOADING = 0  # the number of the answer to loading the functions; calls count from 1
HEAD = struct.Struct("!QQ")  # the call's number, and the bytes of the request after it


def read(stream: BinaryIO) -> tuple[int, bytes] | None:
    """The next call's number and request; None at the end of the stream."""
    head = stream.read(HEAD.size)
    if len(head) < HEAD.size:
        return None
    call, length = HEAD.unpack(head)
    request = stream.read(length)
    return (call, request) if len(request) == length else None
