"""How many writes each client has, under way or waiting for room (invariant 12).

One client cannot take them all. A write counts from its PutStart until it has ended, was aborted or has expired.
"""

from services.master.core.calls import Overloaded
from services.master.core.tables import Config


class Grants:
    def __init__(self, config: Config) -> None:
        self.config = config
        self.total = 0
        self.by_client: dict[str, int] = {}

    def take(self, client: str, count: int) -> None:
        held = self.by_client.get(client, 0)
        if held + count > self.config.writes_per_client_max:
            raise Overloaded(
                f"this client has {held} writes under way: {self.config.writes_per_client_max} are allowed"
            )
        if self.total + count > self.config.writes_max:
            raise Overloaded("too many writes are under way")
        self.total += count
        self.by_client[client] = held + count

    def give_back(self, client: str, count: int) -> None:
        left = self.by_client.pop(client) - count
        self.total -= count
        assert left >= 0, (client, left)
        if left:
            self.by_client[client] = left
