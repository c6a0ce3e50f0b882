"""A model's module tree, copied and changed without touching the model that it came from."""

from __future__ import annotations

import copy
from typing import TypeVar

from torch import nn

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def copied(module: ModuleT) -> ModuleT:
    """The same tree of new modules, which share every parameter and buffer with the old ones.

    A module that occurs twice occurs twice as one new module. Hooks that are there go along.
    """
    made: dict[int, nn.Module] = {}

    def visit(old: nn.Module) -> nn.Module:
        if id(old) not in made:
            new = copy.copy(old)
            # Every container: a hook that is added to one must not fire on the other either.
            for slot, value in old.__dict__.items():
                if slot.startswith("_") and isinstance(value, dict | set):
                    new.__dict__[slot] = copy.copy(value)
            made[id(old)] = new
            for name, child in old._modules.items():
                new._modules[name] = None if child is None else visit(child)
        return made[id(old)]

    visit(module)
    new_root = made[id(module)]
    assert isinstance(new_root, type(module))
    return new_root


def replace(root: nn.Module, path: str, new: nn.Module) -> None:
    """Put a module in the place of the one at a dotted path."""
    parent, _, name = path.rpartition(".")
    owner = root.get_submodule(parent)
    if name not in owner._modules:
        raise KeyError(path)
    owner._modules[name] = new
