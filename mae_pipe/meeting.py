"""Where the launchers of several nodes meet: a store on one of them, which stays until all have ended."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from mae_pipe.errors import RunError
from mae_pipe.network import address_towards, is_own

if TYPE_CHECKING:
    from torch._C._distributed_c10d import TCPStore

SECONDS = 600  # in which the launchers of all nodes must have met
ENDING = 60  # in which all have ended after one of them; ranks without the others end in faults.lost_seconds


class Meeting:
    """The store at HOST:PORT, as one of the launchers sees it.

    torchrun's agent has one of its own there. It takes for the host whoever's own name stands for HOST, which on many
    machines is no one's, and its store ends with each start: a launcher that is early for the next would meet at the
    last. Here the machine decides that has the address, and the agents share a store that outlives them.
    """

    def __init__(self, rendezvous: str, nodes: int) -> None:
        """Be the host, or wait for it.

        Args:
            rendezvous: HOST:PORT.
            nodes: how many launchers are to meet.

        Raises:
            RunError: the host cannot be reached.
        """
        from torch._C._distributed_c10d import TCPStore

        self._rendezvous, self._nodes = rendezvous, nodes
        host, _, port = rendezvous.rpartition(":")
        own = is_own(host)
        self._address = host if own else address_towards(host)
        self._is_host = False
        patience = timedelta(seconds=SECONDS)
        if own:
            with suppress(RuntimeError):  # the port is taken: another launcher of this machine was first
                self._store = TCPStore(host, int(port), is_master=True, multi_tenant=True, timeout=patience)
                self._is_host = True
        if not self._is_host:
            self._store = self._reached(lambda: TCPStore(host, int(port), is_master=False, timeout=patience))

    def _reached(self, connect: Callable[[], TCPStore]) -> TCPStore:
        """The host's store, in bounded time: torch itself waits for ever for a word of what is no store."""
        found: list[TCPStore] = []
        why = ["what listens there does not answer as a launcher"]

        def reach() -> None:
            try:
                found.append(connect())
            except RuntimeError as error:
                why[0] = str(error).partition("\n")[0]

        calling = threading.Thread(target=reach, daemon=True)
        calling.start()
        calling.join(SECONDS + 5)  # torch's own word comes first where it has one
        if not found:
            raise self.failed(why[0])
        return found[0]

    @property
    def settings(self) -> dict[str, Any]:
        """What the agent's LaunchConfig says of the meeting."""
        return {
            "rdzv_endpoint": self._rendezvous,
            "rdzv_configs": {"join_timeout": SECONDS, "is_host": self._is_host},
            "local_addr": self._address,
        }

    def failed(self, why: str) -> RunError:
        """What is said of a meeting that did not come about."""
        return RunError(
            f"the launchers of {self._nodes} nodes did not meet at {self._rendezvous} within {SECONDS} s ({why}); "
            "check that the same command was given on every node, and that all can reach this host and port"
        )

    def ended(self, attempt: int, *, again: bool) -> bool:
        """Wait until the processes of all nodes have ended; whether all launchers want to start them again.

        One that does not say so in ``ENDING`` seconds is gone, and nothing is started again without it.
        """
        start = f"mae-pipe/{attempt}"
        try:
            self._store.add(f"{start}/again", int(again))
            self._all_at(f"{start}/ended")
            again = self._store.add(f"{start}/again", 0) == self._nodes
            self._all_at(f"{start}/left", wait=self._is_host)  # the store goes with its host
        except RuntimeError:  # as it has now
            return False
        return again

    def _all_at(self, point: str, *, wait: bool = True) -> None:
        there, deadline = self._store.add(point, 1), time.monotonic() + ENDING
        while wait and there < self._nodes and time.monotonic() < deadline:
            time.sleep(0.05)
            there = self._store.add(point, 0)
