"""The one place where the fleet's engines change while the proxy runs: as operators say, and as --discover finds.

With a state file, the file is changed first, and then every worker makes its fleet what the file says, so that what was
answered is kept and the workers agree. What one worker finds reaches the others the same way.
"""

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Final

from services.proxy.addresses import AllowList
from services.proxy.config import ProxySettings
from services.proxy.core.engine import Address, Role
from services.proxy.core.membership import Changes, Found, Membership, NotThere, Wish, without_left, without_stale
from services.proxy.health import HealthChecks
from services.proxy.siblings import Siblings
from services.proxy.state_file import StateFile, StateFileError

Edit = Callable[[Membership], Membership]
_LEAVING_S: Final = 1.0  # between looks at whether anybody still needs those that leave


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
        if siblings is not None:
            self._membership = replace(self._membership, found=siblings.found())
        self._file = None if settings.state_file is None else StateFile(settings.state_file)
        if self._file is not None:
            self._membership = self._file.open(self._membership, forget=not settings.discover)
        self._membership.bring(health.fleet)
        self._changing: set[asyncio.Task[int]] = set()
        self._finds = bool(settings.discover)
        self._is_settled = False  # each source of --discover has been heard
        self._letting_go: asyncio.Task[None] | None = None

    async def close(self) -> None:
        if self._letting_go is not None:
            self._letting_go.cancel()
            await asyncio.gather(self._letting_go, return_exceptions=True)

    @property
    def found(self) -> Found:
        return self._membership.found

    def is_expected(self, address: Address) -> bool:
        """Whether the command line or --discover names it."""
        return any(address in self._membership.expected(role) for role in Role)

    async def check(self, allowed: AllowList) -> None:
        """Raises StateFileError if an engine was added where none are allowed any more. One that drains there is
        forgotten: as a rule the command line gave it, and gives its successor now."""
        for role in Role:
            for address, wish in self._membership.changes.get(role, {}).items():
                expected = address in self._membership.expected(role)
                if expected or wish is Wish.REMOVED or await allowed.allows(address):
                    continue
                if wish is Wish.DRAINING and self._finds and not self._is_settled:
                    continue  # it may still be found; if not, find() forgets it
                if wish is not Wish.DRAINING:
                    raise StateFileError(
                        f"the state file has the {role.value} engine {address}, which --instance-allow forbids: "
                        "allow its network, or take it out of the file"
                    )
                with contextlib.suppress(NotThere):  # another worker did it first
                    await self.change(partial(Membership.removed, role=role, address=address))

    async def change(self, change: Edit) -> int:
        """Raises Unchanged if it cannot be made, StateFileError if it cannot be saved. Once it returns, no new leg goes
        against it, except from the workers that are silent, whose number is returned: they follow when they run again.

        A caller that is cancelled does not stop it halfway.
        """
        changing = asyncio.create_task(self._change(change))
        self._changing.add(changing)
        changing.add_done_callback(self._changing.discard)
        return await asyncio.shield(changing)

    async def _change(self, change: Edit) -> int:
        if self._file is None:
            self._take(change(self._membership))
            return 0
        await asyncio.to_thread(
            self._file.update, lambda changes: change(replace(self._membership, changes=changes)).changes
        )
        return await self._reload_all()

    async def find(self, found: Found, *, is_complete: bool) -> int:
        """What --discover finds now; complete: each of its sources has been heard. Returns how many workers are silent,
        which follow later. Raises StateFileError."""

        def forget(changes: Changes) -> Changes:
            kept = without_left(replace(self._membership, changes=changes), found)
            if is_complete and not self._is_settled:  # the file may list engines that left while nobody looked
                kept = without_stale(replace(self._membership, changes=kept, found=found), removals_only=False)
            return kept

        changes = self._membership.changes
        if self._file is not None and forget(changes) != changes:
            await asyncio.to_thread(self._file.update, forget)
        elif self._file is None:
            changes = forget(changes)
        self._is_settled |= is_complete
        if self._siblings is not None:
            self._siblings.find(found)
            return await self._reload_all()
        self._take(self._membership.following(found, changes if self._file is None else self._file.read()))
        return 0

    async def _reload_all(self) -> int:
        self.reload()
        return 0 if self._siblings is None else await self._siblings.reload()

    def reload(self) -> None:
        """Makes the fleet what the state file says and what was found. Raises StateFileError."""
        if self._file is not None:
            found = self._membership.found if self._siblings is None else self._siblings.found()
            self._take(self._membership.following(found, self._file.read()))

    def _take(self, membership: Membership) -> None:
        self._membership = membership.bring(self._health.fleet)
        self._health.follow()
        if self._membership.leaving and (self._letting_go is None or self._letting_go.done()):
            self._letting_go = asyncio.create_task(self._let_go())

    async def _let_go(self) -> None:
        while self._membership.leaving:
            await asyncio.sleep(_LEAVING_S)
            self._membership = self._membership.bring(self._health.fleet)
            self._health.follow()
