"""Plain values as JSON: what a program is given and what it gives back. Used on both sides of the sandbox's wall.

None, bool, int, float, complex, str, bytes, list, tuple, set, frozenset, dict, and nothing else: an object of a
program's own class cannot leave the sandbox, so its `__eq__` compares nothing outside.
"""

import json
from typing import Any

MAX_BYTES = 2**20  # of a value as JSON
BIG = 2**53
COLLECTIONS: dict[str, Any] = {"tuple": tuple, "set": set, "frozenset": frozenset}


def dump(value: object) -> str:
    """A value as JSON.

    Raises:
        TypeError: it is not plain, or holds what is not.
        ValueError: its JSON is longer than MAX_BYTES.
        RecursionError: it is nested too deeply.
    """
    text = json.dumps(_wrapped(value), allow_nan=False)
    if len(text) > MAX_BYTES:
        raise ValueError(f"a value of more than {MAX_BYTES} bytes")
    return text


def load(data: object) -> object:
    """The value of parsed JSON that `dump` made; ValueError or TypeError if it made none of it."""
    if isinstance(data, dict):
        return [_MADE[kind](inner) for kind, inner in data.items()][0]
    if isinstance(data, list):
        return [load(one) for one in data]
    return data


def _wrapped(value: object) -> object:
    if value is None or value is True or value is False or isinstance(value, str):
        return value if value is None or isinstance(value, bool) else str.__str__(value)
    if isinstance(value, int):
        number = int.__index__(value)
        return number if abs(number) < BIG else {"int": hex(number)}  # decimal digits of a long one take minutes
    if isinstance(value, float):
        return {"float": float.hex(value)}
    if isinstance(value, complex):
        return {"complex": [float.hex(complex(value).real), float.hex(complex(value).imag)]}
    if isinstance(value, bytes | bytearray):
        return {"bytes": value.hex()}
    if isinstance(value, list):
        return [_wrapped(one) for one in list.__iter__(value)]
    for name, kind in COLLECTIONS.items():
        if isinstance(value, kind):
            return {name: [_wrapped(one) for one in kind.__iter__(value)]}
    if isinstance(value, dict):
        return {"dict": [[_wrapped(key), _wrapped(one)] for key, one in dict.items(value)]}
    raise TypeError(f"a {type(value).__name__}, which is no plain value")


_MADE: dict[str, Any] = {
    "int": lambda text: int(text, 16), "float": float.fromhex, "bytes": bytes.fromhex,
    "complex": lambda parts: complex(*map(float.fromhex, parts)),
    **{name: lambda inner, kind=kind: kind(map(load, inner)) for name, kind in COLLECTIONS.items()},
    "dict": lambda pairs: {load(key): load(value) for key, value in pairs},
}
