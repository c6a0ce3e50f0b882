"""A model's module tree, copied and changed without touching the model that it came from."""

from __future__ import annotations

import copy
from typing import TypeVar

from torch import nn

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def copied(module: ModuleT) -> ModuleT:
    """The same tree of new modules, which share every parameter and buffer with the old ones.

    A module that occurs twice occurs twice as one new module. Hooks go along.
    """
    made: dict[int, nn.Module] = {}

    def visit(old: nn.Module) -> nn.Module:
        if id(old) not in made:
            new = copy.copy(old)
            for slot in ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"):
                new.__dict__[slot] = copy.copy(old.__dict__[slot])
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
