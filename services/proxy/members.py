"""The one place where the fleet's engines change while the proxy runs: by the word of its operators."""

from collections.abc import Callable

from services.proxy.config import ProxySettings
from services.proxy.core.fleet import Address, Role
from services.proxy.core.membership import Membership
from services.proxy.health import HealthChecks

Change = Callable[[Membership], Membership]


class Members:
    def __init__(self, settings: ProxySettings, health: HealthChecks) -> None:
        self._health = health
        self._membership = Membership(given_engines(settings))
        self._membership.bring(health.fleet)

    async def change(self, change: Change) -> None:
        """Raises Unchanged if it cannot be made. Once it returns, no new leg goes against it."""
        self._membership = change(self._membership)
        self._membership.bring(self._health.fleet)
        self._health.follow()


def given_engines(settings: ProxySettings) -> dict[Role, tuple[Address, ...]]:
    return {
        Role.PREFILL: tuple(Address(address) for address in settings.prefill),
        Role.DECODE: tuple(Address(address) for address in settings.decode),
    }
