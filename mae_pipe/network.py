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
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((host, 9))  # chooses a way, and sends nothing
        except OSError:
            return None
        ours = probe.getsockname()[0]
        for _, name in socket.if_nameindex():
            with suppress(OSError):  # it has no such address
                answer = fcntl.ioctl(probe.fileno(), SIOCGIFADDR, struct.pack("256s", name.encode()))
                if socket.inet_ntoa(answer[20:24]) == ours and not ours.startswith("127."):
                    return name
    return None
