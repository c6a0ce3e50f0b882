"""The arena that fits a device."""

from __future__ import annotations

import torch

from optim.errors import InputError
from optim.vattention.arena.arena import Arena
from optim.vattention.cuda.arena import CudaArena
from optim.vattention.cuda.driver import open_driver
from optim.vattention.linux.arena import LinuxArena
from optim.vattention.settings import Settings


def new_arena(settings: Settings, device: torch.device) -> Arena:
    """An arena on `device`. InputError where there is none for it: nothing else is used instead."""
    if device.type == "cpu":
        return LinuxArena(huge=settings.pages == "huge", budget_bytes=settings.budget_bytes)
    if device.type == "cuda":
        if settings.pages == "base":
            raise InputError(
                "a CUDA device has huge pages only",
                field="optimizations.vattention.pages",
                mend="Use pages: auto",
            )
        index = torch.cuda.current_device() if device.index is None else device.index
        return CudaArena(open_driver(index), settings.budget_bytes, settings.pool_bytes)
    raise InputError(
        f"vattention has no memory backend for the device {device.type}",
        field="optimizations.vattention",
    )
