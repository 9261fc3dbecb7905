"""Variation points that a program can add to: a field of the config, and the functions it names.

The config knows the names before the code behind them is imported, so that a mistake is found when
an experiment is frozen; the room that has the functions keeps them in a `Kinds`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

T = TypeVar("T")


class Kinds(dict[str, T]):
    """What each name of a field stands for.

    Args:
      field: dotted path of the field.
      names: that the config accepts there; `register` adds to this very list.
      built_in: what they stand for.
    """

    def __init__(self, field: str, names: list[str], built_in: Mapping[str, T]):
        super().__init__(built_in)
        assert set(names) == set(built_in), (field, names)
        self.field, self.names = field, names

    def register(self, name: str, kind: T) -> None:
        """Makes `name` a value of the field, for as long as this process runs.

        Raises:
          ValueError: the name is taken. What it stands for may have been compiled already.
        """
        if name in self:
            raise ValueError(f"{self.field} = {name!r} is taken; choose another name")
        self[name] = kind
        self.names.append(name)
