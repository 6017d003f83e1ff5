"""Which gateways are lost, and since when. Pure."""

from __future__ import annotations

from broker.control import DeviceState, GatewayStatus


class GatewayWatch:
    """What a node must know of gateways: when to free what one of them holds.

    Args:
        patience_seconds: A gateway that is lost may come back within this.
    """

    def __init__(self, patience_seconds: float) -> None:
        self._patience = patience_seconds
        self._sessions: dict[str, int] = {}
        self._lost_at: dict[str, float] = {}

    def see(self, gateway: str, status: GatewayStatus, now: float) -> None:
        """Take in a status; a late will of an older session changes nothing."""
        if status.session < self._sessions.get(gateway, 0):
            return
        self._sessions[gateway] = status.session
        if status.state is DeviceState.LOST:
            self._lost_at.setdefault(gateway, now)
        else:
            self._lost_at.pop(gateway, None)

    def take_lost(self, now: float) -> list[str]:
        """Return, once each, the gateways whose time is over."""
        over = [g for g, since in self._lost_at.items() if now - since >= self._patience]
        for gateway in over:
            del self._lost_at[gateway]
        return over
