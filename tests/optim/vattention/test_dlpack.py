"""Tensors over addresses: what they keep alive, and for how long."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import weakref

import pytest
import torch

from optim.vattention.arena.dlpack import tensor_at


class Owner:
    """Whatever a tensor keeps."""


def test_a_tensor_keeps_its_owner_and_no_more() -> None:
    memory = torch.arange(64, dtype=torch.uint8)
    owner = Owner()
    seen = weakref.ref(owner)
    made = tensor_at(memory.data_ptr(), 64, torch.int64, torch.device("cpu"), owner)
    del owner
    assert int(made[0]) == int.from_bytes(bytes(range(8)), "little")
    view = made[3:].view(torch.uint8)
    del made
    gc.collect()
    assert seen() is not None
    assert int(view[0]) == 24
    del view
    assert seen() is None


def test_a_tensor_that_is_refused_keeps_nothing() -> None:
    owner = Owner()
    seen = weakref.ref(owner)
    with pytest.raises(RuntimeError, match="divisible"):
        tensor_at(4096, 10, torch.int64, torch.device("cpu"), owner)
    del owner
    assert seen() is None


def test_at_exit_tensors_keep_their_memory_and_call_nobody() -> None:
    program = """
import atexit

box = []

def last():
    view, alive = box
    print(float(view.sum()))
    box.clear()
    del view
    print(len(alive))

atexit.register(last)  # before torch's and the arena's own, so it runs after them

import numpy as np
import torch
from fake_cuda_driver import FakeDriver
from optim.vattention.arena import dlpack
from optim.vattention.arena.arena import Spans
from optim.vattention.cuda.arena import CudaArena

driver = FakeDriver()
arena = CudaArena(driver)
reservation = arena.reserve(1 << 20)
arena.commit(Spans(np.array([reservation.address]), np.array([driver.page_bytes])))
tensor = reservation.tensor(torch.float32)
tensor[:2] = 3
box += [tensor[:2], dlpack._alive]
del arena, reservation, tensor
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        env={"PYTHONPATH": os.environ["PYTHONPATH"], "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "6.0\n1\n", "")
