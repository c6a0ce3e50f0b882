"""A torch tensor over any address, which keeps an object alive for as long as it lives.

DLPack is how torch takes memory of others: it is given the device and asks nobody about the
address, so memory need not be behind all of it, and it calls back when the last view is gone.
"""

from __future__ import annotations

import atexit
import ctypes

import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

_DEVICE_TYPES = {"cpu": 1, "cuda": 2}
_UNSIGNED = 1
_NAME = b"dltensor"  # a capsule keeps the pointer and no copy
_Deleter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class _ManagedTensor(ctypes.Structure):
    """DLManagedTensor of dlpack.h, its nested structures laid out flat."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("num_dimensions", ctypes.c_int32),
        ("type_code", ctypes.c_uint8),
        ("type_bits", ctypes.c_uint8),
        ("type_lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
        ("manager_context", ctypes.c_void_p),
        ("deleter", _Deleter),
    )


_alive: dict[int, tuple[_ManagedTensor, object]] = {}  # by the structure's address
_new_capsule = ctypes.PYFUNCTYPE(
    ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p
)(("PyCapsule_New", ctypes.pythonapi))


def _forget(address: int) -> None:
    _alive.pop(address, None)


_delete = _Deleter(_forget)


@atexit.register
def _call_no_more() -> None:
    """Tensors that outlive the interpreter must not call it; their memory goes with the process."""
    for managed, _ in list(_alive.values()):
        managed.deleter = _Deleter()
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(managed))


def tensor_at(
    address: int, num_bytes: int, dtype: torch.dtype, device: torch.device, owner: object
) -> Tensor:
    """A flat tensor over `num_bytes` from `address` on, which is on `device` (a CPU or CUDA).

    `owner` is kept until the tensor and all views of it are gone. Nothing is read or written.
    """
    length = ctypes.c_int64(num_bytes)
    # Of bytes, and then viewed: torch does not take every type of its own from DLPack.
    managed = _ManagedTensor(
        data=address,
        device_type=_DEVICE_TYPES[device.type],
        device_id=device.index or 0,
        num_dimensions=1,
        type_code=_UNSIGNED,
        type_bits=8,
        type_lanes=1,
        shape=ctypes.pointer(length),
        deleter=_delete,
    )
    place = ctypes.addressof(managed)
    _alive[place] = managed, owner
    try:
        # A view made under inference mode could not be written outside it.
        with torch.inference_mode(False):
            flat: Tensor = from_dlpack(_new_capsule(place, _NAME, None))
            return flat.view(dtype)
    except BaseException:
        _alive.pop(place, None)
        raise
