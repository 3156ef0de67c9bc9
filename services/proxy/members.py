"""The one place where the fleet's engines change while the proxy runs: by the word of its operators.

With a state file the file is changed first, and then the fleet is made what the file says, in every worker: so that
what was answered is kept, and the workers agree.
"""

import asyncio
import contextlib
from collections.abc import Callable
from functools import partial

from services.proxy.addresses import AllowList
from services.proxy.config import ProxySettings
from services.proxy.core.fleet import Address, Role
from services.proxy.core.membership import Membership, NotThere, Wish
from services.proxy.health import HealthChecks
from services.proxy.siblings import Siblings
from services.proxy.state_file import StateFile, StateFileError

Change = Callable[[Membership], Membership]


class Members:
    def __init__(self, settings: ProxySettings, health: HealthChecks, siblings: Siblings | None = None) -> None:
        """Siblings need a state file. Raises StateFileError."""
        self._siblings = siblings
        self._health = health
        self._membership = Membership(
            {
                Role.PREFILL: tuple(Address(address) for address in settings.prefill),
                Role.DECODE: tuple(Address(address) for address in settings.decode),
            }
        )
        self._file = None if settings.state_file is None else StateFile(settings.state_file)
        if self._file is not None:
            self._membership = self._file.begin(self._membership)
        self._membership.bring(health.fleet)
        self._changing: set[asyncio.Task[int]] = set()

    async def check(self, allowed: AllowList) -> None:
        """Raises StateFileError if an engine was added where none may be any more. One that drains there is forgotten:
        as a rule the command line gave it, and gives its successor now."""
        for role in Role:
            for address, wish in self._membership.changes.get(role, {}).items():
                given = address in self._membership.given[role]
                if given or wish is Wish.REMOVED or await allowed.allows(address):
                    continue
                if wish is not Wish.DRAINING:
                    raise StateFileError(
                        f"the state file has the {role.value} engine {address}, which --instance-allow does not allow: "
                        "allow its network, or take it out of the file"
                    )
                with contextlib.suppress(NotThere):  # another worker was faster
                    await self.change(partial(Membership.removed, role=role, address=address))

    async def change(self, change: Change) -> int:
        """Raises Unchanged if it cannot be made, StateFileError if it cannot be kept. Once it returns, no new leg goes
        against it, but for those of so many workers that are silent: they follow when they come to themselves.

        A caller that is cancelled does not stop it half-way.
        """
        changing = asyncio.create_task(self._change(change))
        self._changing.add(changing)
        changing.add_done_callback(self._changing.discard)
        return await asyncio.shield(changing)

    async def _change(self, change: Change) -> int:
        if self._file is None:
            self._take(change(self._membership))
            return 0
        given = self._membership.given
        await asyncio.to_thread(self._file.update, lambda changes: change(Membership(given, changes)).changes)
        self.reload()
        return 0 if self._siblings is None else await self._siblings.reload()

    def reload(self) -> None:
        """Makes the fleet what the state file says; raises StateFileError."""
        if self._file is not None:
            self._take(Membership(self._membership.given, self._file.read()))

    def _take(self, membership: Membership) -> None:
        self._membership = membership
        membership.bring(self._health.fleet)
        self._health.follow()
