"""Advice to the Linux kernel about many ranges of memory in one call, with the GIL released.

`process_madvise` takes all ranges at once, so that a step of hundreds of stripes costs one system
call; for populating oneself it needs Linux 6.13, and before that each range is a `madvise`.
`mmap.madvise` of the standard library is of no use here: it holds the GIL throughout.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os

import numpy as np

from optim.vattention.arena.arena import Spans

DONTNEED, HUGEPAGE, NOHUGEPAGE, POPULATE_WRITE = 4, 14, 15, 23
_PROCESS_MADVISE = 440
_MOST_RANGES = 1024  # IOV_MAX


@functools.cache
def libc() -> ctypes.CDLL:
    """The C library. Calls through it release the GIL and keep errno apart, per thread."""
    library = ctypes.CDLL(None, use_errno=True)
    library.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    library.syscall.restype = ctypes.c_long
    library.mmap.restype = ctypes.c_void_p
    library.mmap.argtypes = [
        ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long,
    ]  # fmt: skip
    return library


def advise(address: int, num_bytes: int, advice: int) -> None:
    """`madvise` on one range; OSError with its errno where it fails."""
    while libc().madvise(address, num_bytes, advice):
        code = ctypes.get_errno()
        if code not in (errno.EINTR, errno.EAGAIN):
            raise OSError(code, os.strerror(code))


def advise_all(spans: Spans, advice: int) -> None:
    """`madvise` on every range; OSError at the first that fails, others may be done."""
    if not len(spans.addresses_N):
        return
    # A process forked from the one that looked has another id, so the descriptor goes by it.
    descriptor = _own_descriptor(os.getpid())
    if descriptor is None:
        for address, size in zip(spans.addresses_N.tolist(), spans.bytes_N.tolist(), strict=True):
            advise(address, size, advice)
        return
    for start in range(0, len(spans.addresses_N), _MOST_RANGES):
        end = start + _MOST_RANGES
        _advise_vector(
            descriptor, Spans(spans.addresses_N[start:end], spans.bytes_N[start:end]), advice
        )


def _advise_vector(descriptor: int, spans: Spans, advice: int) -> None:
    vector_N2 = np.stack([spans.addresses_N, spans.bytes_N], axis=1)
    while len(vector_N2):
        done = _process_madvise(descriptor, vector_N2, advice)
        if done == int(vector_N2[:, 1].sum()):
            return
        if done < 0:
            code = ctypes.get_errno()
            if code in (errno.EINTR, errno.EAGAIN):
                continue
            raise OSError(code, os.strerror(code))
        vector_N2 = _rest(vector_N2, done)


def _rest(
    vector_N2: np.ndarray[tuple[int, ...], np.dtype[np.int64]], done: int
) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    """What is left of ranges of which the first `done` bytes are served."""
    ends_N = vector_N2[:, 1].cumsum()
    first = int(np.searchsorted(ends_N, done, side="right"))
    rest = vector_N2[first:].copy()
    served = done - int(ends_N[first - 1] if first else 0)
    rest[0] += [served, -served]
    return rest


def _process_madvise(
    descriptor: int, vector_N2: np.ndarray[tuple[int, ...], np.dtype[np.int64]], advice: int
) -> int:
    done: int = libc().syscall(
        ctypes.c_long(_PROCESS_MADVISE),
        ctypes.c_long(descriptor),
        ctypes.c_void_p(vector_N2.ctypes.data),
        ctypes.c_size_t(len(vector_N2)),
        ctypes.c_long(advice),
        ctypes.c_ulong(0),
    )
    return done


@functools.lru_cache(maxsize=1)
def _own_descriptor(process: int) -> int | None:
    """A descriptor of this process, None where the kernel takes no such advice from it."""
    try:
        descriptor = os.pidfd_open(process)
    except OSError:
        return None
    page = os.sysconf("SC_PAGESIZE")
    probe = np.zeros(2 * page, np.uint8)
    inside = -(-probe.ctypes.data // page) * page
    done = _process_madvise(descriptor, np.array([[inside, page]], np.int64), POPULATE_WRITE)
    if done == page:
        return descriptor
    os.close(descriptor)
    return None
