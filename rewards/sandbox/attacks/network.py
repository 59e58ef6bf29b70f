"""Ways to speak to anyone."""

import socket

from rewards.sandbox.attacks import Attack, tried

# Every family that Linux has, by its number; names differ between versions of Python.
FAMILIES = {name: int(number) for name, number in sorted(vars(socket).items()) if name.startswith("AF_")}

ASKED = {
    "a name": "__import__('socket').getaddrinfo('example.com', 80)",
    "loopback": "__import__('socket').create_connection(('127.0.0.1', 80), 1)",
    "an address": "__import__('socket').create_connection(('1.1.1.1', 53), 1)",
    "the web": "__import__('urllib.request').request.urlopen('http://example.com', timeout=1)",
    "a server of its own": "__import__('socket').create_server(('127.0.0.1', 0))",
    "a pair of sockets": "__import__('socket').socketpair()",
    "network cards": "__import__('socket').if_nameindex()",
}

ATTACKS = [
    *(Attack(f"a socket of {name} {kind}", tried(f"__import__('socket').socket({number}, {value})"))
      for name, number in FAMILIES.items() for kind, value in (("stream", 1), ("datagram", 2), ("raw", 3))
      if kind == "stream" or name in ("AF_INET", "AF_INET6", "AF_UNIX", "AF_NETLINK", "AF_PACKET")),
    *(Attack(f"ask for {name}", tried(line)) for name, line in ASKED.items()),
]
