"""LaRoSA's Triton kernels compiled for devices that are not there."""

from __future__ import annotations

import importlib
import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from triton_interpreter import DTYPES, IDS, every_dtype, triton

SIZES = ("num_inputs", "num_outputs", "part_D")


@pytest.fixture(scope="module")
def compiler() -> Iterator[ProcessPoolExecutor]:
    """A process in which Triton compiles: in one where it has interpreted it cannot."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield pool


def compiled(
    folder: Path, capability: int, module: str, kernel: str, warps: int, arguments: dict[str, Any]
) -> tuple[int, str, str]:
    """Bytes of shared memory, the compiler's code and the device's; no device is needed."""
    os.environ["TRITON_CACHE_DIR"] = str(folder)
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    function = getattr(importlib.import_module(f"optim.larosa.kernels.{module}"), kernel)
    types = {n: a if isinstance(a, str) else "constexpr" for n, a in arguments.items()}
    places = {name: (function.arg_names.index(name),) for name in arguments}
    # As the tensors and sizes of real models are, so that loads are as wide.
    aligned = [n for n, t in types.items() if t[0] == "*" or n in SIZES]
    source = ASTSource(
        function,
        {name: types[name] for name in function.arg_names},
        {places[n]: a for n, a in arguments.items() if not isinstance(a, str)},
        {places[n]: [["tt.divisibility", 16]] for n in aligned},
    )
    target = GPUTarget("cuda", capability, 32)
    made = triton.compile(source, target=target, options={"num_warps": warps})
    return made.metadata.shared, made.asm["ttgir"], made.asm["ptx"]


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_products_are_compiled_to_copies_ahead(
    compiler: ProcessPoolExecutor, tmp_path: Path, dtype: torch.dtype, capability: int
) -> None:
    from optim.larosa.kernels import triton_gemv

    pointer = "*fp32" if dtype == torch.float32 else "*bf16"
    for num_outputs, rows in ((4096, 3), (28672, 1)):
        chosen = triton_gemv.plan(4096, num_outputs, dtype.itemsize, 132)
        group_D = chosen.block_D // 4
        arguments = dict.fromkeys(("x_BD", "wt_DN", "bias_N", "y_PBN"), pointer)
        arguments |= dict.fromkeys(("num_rows", *SIZES), "i32")
        constants = {
            "ROWS": 16,
            "USED_ROWS": rows,
            "GROUPS": 4,
            "GROUP_D": group_D,
            "BLOCK_N": chosen.block_N,
            "NUM_STAGES": 2 * chosen.depth + 1,
        }
        shared, code, ptx = compiler.submit(
            compiled, tmp_path, capability, "triton_gemv", "_multiply", 4, arguments | constants
        ).result()
        assert shared <= 99 << 10, "what a program may have on the smallest devices"
        buffer = f"memdesc<{chosen.depth}x4x{group_D}x{chosen.block_N}x"
        assert buffer in code, "as many tiles of weights as are to be in flight"
        assert "cp.async.cg" in ptx
        assert ("mma.sync" in ptx) == (dtype == torch.bfloat16)
        assert "tf32" not in ptx
        assert "atom" not in ptx


@pytest.mark.parametrize("capability", [80, 90])
@every_dtype
def test_other_kernels_are_compiled(
    compiler: ProcessPoolExecutor, tmp_path: Path, dtype: torch.dtype, capability: int
) -> None:
    from optim.larosa.kernels import triton_select

    pointer = f"*{IDS[DTYPES.index(dtype)]}"
    above = {"x_BD": pointer, "y_BD": pointer, "num_inputs": "i32", "threshold": "fp32"}
    selects = {
        "x_BD": pointer,
        "score_D": "*fp32",
        "y_BD": pointer,
        "num_inputs": "i32",
        "k": "i32",
        "eps": "fp32",
        "over_mean": "fp32",
        "bits_per_entry": "fp32",
        "NORMALIZES": True,
        "SELECTS": True,
        "NUM_BITS": 31,
        "NAN_BITS": triton_select._NAN_BITS[torch.float32],
        "BLOCK_D": 4096,
    }
    adds: dict[str, Any] = {
        "sums_PBN": "*fp32",
        "bias_N": pointer,
        "y_BN": pointer,
        "num_rows": "i32",
    }
    adds |= {"num_outputs": "i32", "PARTS": 4, "BLOCK_N": 256}
    for module, kernel, warps, arguments in (
        ("triton_select", "_keep_largest", 8, selects),
        ("triton_select", "_keep_above", 4, {**above, "BLOCK_D": 1024}),
        ("triton_gemv", "_add_parts", 4, adds),
    ):
        *_, ptx = compiler.submit(
            compiled, tmp_path, capability, module, kernel, warps, arguments
        ).result()
        assert "atom" not in ptx
