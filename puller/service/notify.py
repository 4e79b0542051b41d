"""Telling systemd how a service is: readiness, status, watchdog (sd_notify(3)). Without systemd it does nothing."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Mapping

SOCKET = "NOTIFY_SOCKET"
_VARIABLES = (SOCKET, "WATCHDOG_USEC", "WATCHDOG_PID")


class Notifier:
    """Sends states to the socket that NOTIFY_SOCKET names. `watchdog` is how often it wants a sign of life, in seconds."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        address = environment.get(SOCKET, "")
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        microseconds = environment.get("WATCHDOG_USEC", "")
        mine = environment.get("WATCHDOG_PID") in (None, "", str(os.getpid()))
        counts = mine and microseconds.isascii() and microseconds.isdigit() and int(microseconds) > 0
        self.watchdog = int(microseconds) / 1e6 if self._address and counts else None

    def send(self, *states: str) -> None:
        """Send states, as `READY=1`; what systemd does not take is lost, and the service goes on."""
        if not self._address:
            return
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as s:
            s.sendto("\n".join(state.replace("\n", " ") for state in states).encode(), self._address)


def without_systemd(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment for commands that a service starts: they are not the service."""
    return {name: value for name, value in environment.items() if name not in _VARIABLES}
