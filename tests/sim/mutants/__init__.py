"""Switches that break the product, one for each promise this tier can see: one that goes unnoticed is decoration.

Each takes `put(owner, name, value)`, which undoes itself. They are applied before a world is made.
"""

from tests.sim.mutants import client, master, node
from tests.sim.mutants.registry import MUTANTS, applied

__all__ = ["MUTANTS", "applied", "client", "master", "node"]
