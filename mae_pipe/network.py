"""The network between the machines of a job."""

from __future__ import annotations

import fcntl
import socket
import struct
from contextlib import suppress

SIOCGIFADDR = 0x8915  # the IPv4 address of an interface (linux/sockios.h)


def interface_towards(host: str) -> str | None:
    """The interface by which this machine reaches ``host``; None if that is itself, or where it cannot be told.

    Gloo offers the others the address that this machine's own name stands for, and on many that is 127.0.1.1.
    """
    ours = address_towards(host)
    if ours is None or ours.startswith("127."):
        return None
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            with suppress(OSError):  # it has no such address
                answer = fcntl.ioctl(probe.fileno(), SIOCGIFADDR, struct.pack("256s", name.encode()))
                if socket.inet_ntoa(answer[20:24]) == ours:
                    return name
    return None


def address_towards(host: str) -> str | None:
    """The IPv4 address by which this machine reaches ``host``; None where it cannot be told."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((host, 9))  # chooses a way, and sends nothing
        except OSError:
            return None
        return str(probe.getsockname()[0])


def is_own(host: str) -> bool:
    """Whether ``host`` is this machine, by any of its IPv4 addresses."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((host, 0))  # only an address of its own can be had
        except OSError:
            return False
        return True
