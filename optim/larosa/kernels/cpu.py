"""The CPU kernels: a shared library of C, compiled when Optrial is installed, called by ctypes.

Activations are float32 or bfloat16 and weights of the same dtype. Results have no gradient. Calls
release the interpreter's lock, and several threads may call at once.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
from ctypes import c_char_p, c_double, c_float, c_int, c_int64, c_void_p
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import torch
from torch import Tensor

from optim.errors import InputError

LIBRARY = Path(__file__).with_name("sparse_kernels.so")
VARIANTS = ("avx512", "avx2", "portable")
_FIELD = "optimizations.larosa"
_NUMBERS = {torch.float32: 0, torch.bfloat16: 1}
_NO_NORM, _ABOVE = -1.0, -1


def available() -> bool:
    """Whether the library is there and made from the sources beside it."""
    try:
        _library()
    except InputError:
        return False
    return True


def require() -> None:
    """InputError, which says how to mend it, where the library is missing or out of date."""
    _library()


def sparse_linear(
    x_BD: Tensor, wt_DN: Tensor, bias_N: Tensor | None = None, num_threads: int | None = None
) -> tuple[Tensor, int]:
    """`x @ wt + bias`, [..., D] -> [..., N], and how many rows of `wt` were read for it.

    A row of `wt` is read where some row of x has a value other than zero, and adds only to that
    row's result. Sums are float32: a chain of multiply-adds in ascending order of inputs from zero,
    and the bias at the end, so that a result depends neither on the other rows nor on the number of
    threads (torch's by default). `wt` has to be contiguous. InputError for a dtype other than
    float32 and bfloat16.
    """
    library, number = _library(), _number(x_BD)
    num_inputs, num_outputs = wt_DN.shape
    if x_BD.shape[-1] != num_inputs or not wt_DN.is_contiguous():
        raise ValueError(f"x {list(x_BD.shape)} needs a contiguous [{x_BD.shape[-1]}, N]")
    _check_like(x_BD, wt_DN)
    bias = None
    if bias_N is not None:
        _check_like(x_BD, bias_N)
        if bias_N.shape != (num_outputs,):
            raise ValueError(f"a bias of {list(bias_N.shape)} for {num_outputs} outputs")
        bias_N = bias_N.contiguous()
        bias = bias_N.data_ptr()
    x_BD = x_BD.contiguous()
    outer = x_BD.shape[:-1]
    y_BN = x_BD.new_empty((*outer, num_outputs))
    num_read: int = library.optrial_sparse_linear(
        x_BD.data_ptr(),
        wt_DN.data_ptr(),
        bias,
        y_BN.data_ptr(),
        outer.numel(),
        num_inputs,
        num_outputs,
        torch.get_num_threads() if num_threads is None else num_threads,
        number,
    )
    if num_read < 0:
        raise MemoryError("no memory for a sparse product")
    return y_BN, num_read


def select(x_BD: Tensor, k: int, score_D: Tensor | None = None) -> Tensor:
    """x with all but the `k` entries of each row [..., D] zero that rank highest by |x| * score.

    Exactly k are kept: of equal ranks the lowest index first, and any NaN before all else.
    `score_D` is float32, and not negative; None ranks by |x|. InputError for a dtype of x other
    than float32 and bfloat16.
    """
    if k < 0:
        raise ValueError(f"{k} entries cannot be kept")
    return _selected(x_BD, score_D, _NO_NORM, k, 0.0)


def above(x_BD: Tensor, threshold: float) -> Tensor:
    """x with every entry of magnitude up to `threshold` set to zero; a NaN stays.

    InputError for a dtype of x other than float32 and bfloat16.
    """
    if not threshold >= 0:
        return _selected(x_BD, None, _NO_NORM, x_BD.shape[-1], 0.0)
    return _selected(x_BD, None, _NO_NORM, _ABOVE, threshold + 0.0)


def normalize_select(
    x_BD: Tensor, eps: float, k: int | None, score_D: Tensor | None = None
) -> Tensor:
    """Each row over its root mean square, rounded to x's dtype, and then as `select` does it.

    `k` of None keeps all entries. InputError for a dtype other than float32 and bfloat16.
    """
    kept = x_BD.shape[-1] if k is None else k
    if kept < 0 or eps < 0:
        raise ValueError(f"{kept} entries cannot be kept, nor an eps of {eps} be added")
    return _selected(x_BD, score_D, eps, kept, 0.0)


def set_variant(name: str | None) -> None:
    """Use one of `variants()` from now on; None for the best. For tests and measurements."""
    if _library().optrial_set_variant(None if name is None else name.encode()):
        raise ValueError(f"this processor has no variant {name!r}")


def variant() -> str:
    """The instructions in use: one of VARIANTS."""
    name: bytes = _library().optrial_variant()
    return name.decode()


def variants() -> tuple[str, ...]:
    """Those of VARIANTS that this processor has, the best one first."""
    before = variant()
    found = tuple(n for n in VARIANTS if not _library().optrial_set_variant(n.encode()))
    set_variant(before)
    return found


def _selected(x_BD: Tensor, score_D: Tensor | None, eps: float, k: int, threshold: float) -> Tensor:
    library, number = _library(), _number(x_BD)
    width, score = x_BD.shape[-1], None
    if score_D is not None:
        if score_D.dtype is not torch.float32 or score_D.shape != (width,) or not score_D.is_cpu:
            raise ValueError(f"a score of {score_D.dtype} {list(score_D.shape)} for {width} inputs")
        score_D = score_D.contiguous()
        score = score_D.data_ptr()
    x_BD = x_BD.contiguous()
    y_BD = torch.empty_like(x_BD)
    if library.optrial_select(
        x_BD.data_ptr(),
        y_BD.data_ptr(),
        x_BD.shape[:-1].numel(),
        width,
        score,
        eps,
        k,
        threshold,
        number,
    ):
        raise MemoryError("no memory for a selection")
    return y_BD


def _number(x_BD: Tensor) -> int:
    """What the library calls the dtype."""
    number = _NUMBERS.get(x_BD.dtype)
    if number is None or not x_BD.is_cpu:
        raise InputError(
            f"the CPU kernels do not work on {x_BD.dtype} on {x_BD.device.type}",
            field=_FIELD,
            mend="They work on float32 and bfloat16 on a CPU",
        )
    return number


def _check_like(x_BD: Tensor, other: Tensor) -> None:
    if other.dtype is not x_BD.dtype or not other.is_cpu:
        raise InputError(
            f"activations are {x_BD.dtype}, but weights {other.dtype} on {other.device.type}",
            field=_FIELD,
            mend="Use one dtype for both, float32 or bfloat16, on a CPU",
        )


@functools.cache
def _library() -> ctypes.CDLL:
    """The library with its functions declared; InputError where there is none that fits."""
    place = _place()
    try:
        library = ctypes.CDLL(str(place))
    except OSError as error:
        is_there = place.exists()
        raise InputError(
            f"the library of the CPU kernels cannot be loaded: {error}"
            if is_there
            else "the CPU kernels were not compiled when Optrial was installed",
            source=place if is_there else None,
            field=_FIELD,
            mend="Install a C compiler (gcc or clang) and install Optrial again",
        ) from error
    try:
        _declare(library)
        built_from = library.optrial_source_hash().decode()
    except AttributeError:
        built_from = ""
    expected = _source_hash(LIBRARY.parent)
    if expected is not None and built_from != expected:
        raise InputError(
            "the CPU kernels are older than their sources",
            source=place,
            field=_FIELD,
            mend="Install Optrial again",
        )
    return library


def _place() -> Path:
    """Beside this file, else in the installed package.

    A job's working directory holds sources and what Git tracks; the library is where Optrial was
    installed.
    """
    if LIBRARY.exists():
        return LIBRARY
    try:
        installed = distribution("optrial").locate_file(f"optim/larosa/kernels/{LIBRARY.name}")
    except PackageNotFoundError:
        return LIBRARY
    place = Path(str(installed))
    return place if place.exists() else LIBRARY


def _declare(library: ctypes.CDLL) -> None:
    pointer, size = c_void_p, c_int64
    product, selection = library.optrial_sparse_linear, library.optrial_select
    product.argtypes = [pointer, pointer, pointer, pointer, size, size, size, c_int, c_int]
    product.restype = size
    selection.argtypes = [pointer, pointer, size, size, pointer, c_double, size, c_float, c_int]
    selection.restype = c_int
    library.optrial_set_variant.argtypes = [c_char_p]
    library.optrial_set_variant.restype = c_int
    for text in (library.optrial_variant, library.optrial_source_hash):
        text.argtypes, text.restype = [], c_char_p


def _source_hash(folder: Path) -> str | None:
    """As the build computes it; None where the sources are not there."""
    sources = sorted([*folder.glob("*.c"), *folder.glob("*.h")])
    if not sources:
        return None
    digest = hashlib.sha256()
    for path in sources:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
