"""Pickles that are read without being run: what is read, what is refused, and that none runs."""

from __future__ import annotations

import collections
import os
import pickle
import random
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from official_files import by_hand, refusal, saved

from optim.adaptivocab.official import inert_pickle as module
from optim.adaptivocab.official.reader import read_official
from optim.errors import InputError


@pytest.mark.parametrize(
    "data",
    [b"", b"hello world", b'{"a": 1}', b"PK\x03\x04" + bytes(40), b"\x80\x09.", pickle.dumps([1]),
     pickle.dumps({}), pickle.dumps(5) + b"more", b"\x80\x04\x8e" + b"\xff" * 7 + b"\x7f.", b"0.",
     b"(a.", b"h\x07.", b"\x80\x04\x95" + b"\xff" * 8 + b"N."],
)  # fmt: skip
def test_what_is_no_such_pickle_is_refused(tmp_path: Path, data: bytes) -> None:
    refusal(saved(tmp_path, data))


def test_no_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    refusal(tmp_path / "none.pkl")
    refusal(tmp_path)


def test_a_file_that_is_cut_off_anywhere_is_refused(tmp_path: Path) -> None:
    data = pickle.dumps(by_hand())
    for length in random.Random(0).sample(range(len(data)), 60):
        refusal(saved(tmp_path, data[:length]))


def test_damaged_files_are_read_or_refused_but_never_crash(tmp_path: Path) -> None:
    data = pickle.dumps(by_hand())
    chance = random.Random(1)
    num_refused = 0
    for _ in range(150):
        bad = bytearray(data)
        for place in chance.choices(range(len(bad)), k=3):
            bad[place] = chance.randrange(256)
        try:
            read_official(saved(tmp_path, bytes(bad)))
        except InputError:
            num_refused += 1
    assert num_refused > 50


LONGS = b"".join(
    b"\x8a\x10" + (i * (2**61 - 1)).to_bytes(16, "little") + b"N" for i in range(10, 12_000)
)
"""Keys that all have one hash."""


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"\x80\x04Nr\xff\xff\xff\x7f.", "memo of 2147483647 places"),
        (b"\x80\x04N" + b"2\x86" * 50 + b".", "too much within each other"),
        (b"\x80\x04N" + b"\x85" * 100_000 + b".", "too deep within each other"),
        (b"\x80\x04(" + b"}" * 2000 + b"t.", "too many opcodes"),
        (b"\x80\x04}(" + LONGS + b"u.", "too much within each other"),
    ],
)
def test_pickles_that_would_take_all_memory_or_time_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes, why: str
) -> None:
    if "opcodes" in why:
        monkeypatch.setattr(module, "_MOST_OPCODES", 1000)
    assert why in str(refusal(saved(tmp_path, data)))


def test_copies_of_copies_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_WORK", 10_000)
    copies = b"(" + b"N" * 1000 + b"lq\x00" + b"cbuiltins\nlist\nh\x00\x85R" * 20 + b"."
    assert "too much" in str(refusal(saved(tmp_path, copies)))


def test_files_beyond_the_limit_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_BYTES", 1 << 20)
    assert "more than 1 MiB" in str(refusal(saved(tmp_path, bytes((1 << 20) + 1))))


# Files that would do harm.


class Call:
    """Pickled as a call."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


def harm(canary: Path) -> dict[str, bytes]:
    """Pickles that make the canary where they are loaded by `pickle`, without their header."""
    command = f"touch {canary}"
    source = f"open({str(canary)!r}, 'w').close()"
    calls: dict[str, Any] = {
        "posix.system": Call(os.system, command),
        "builtins.eval": Call(eval, source),
        "builtins.exec": Call(exec, source),
        "subprocess.check_call": Call(subprocess.check_call, ["touch", str(canary)]),
        "_io.open": Call(open, str(canary), "w"),
    }
    found = {name: pickle.dumps(call, 4)[2:] for name, call in calls.items()}
    found["builtins.getattr"] = pickle.dumps(Call(getattr, canary, "touch"), 4)[2:-1] + b")R."
    found["builtins.map"] = (
        b"cbuiltins\nlist\n(cbuiltins\nmap\n(cbuiltins\neval\n(lS"
        + repr(source).encode()
        + b"\natRtR."
    )
    text = repr(command).encode()
    found["os.system"] = b"cos\nsystem\n(S" + text + b"\ntR."
    found["os.system INST"] = b"(S" + text + b"\nios\nsystem\n."
    found["os.system OBJ"] = b"(cos\nsystem\nS" + text + b"\no."
    found["os.system STACK_GLOBAL"] = b"\x8c\x02os\x8c\x06system\x93(S" + text + b"\ntR."
    # Not `object.__reduce__`'s doing, but a class that is made by the pickle and called by BUILD.
    found["builtins.type"] = (
        b"cbuiltins\ntype\n(S'X'\n)}S'__setstate__'\ncos\nsystem\nstR)\x81S" + text + b"\nb."
    )
    return found


def plain_frames(data: bytes) -> bytes:
    """Without the opcode FRAME, which could not be put into another pickle."""
    return re.sub(rb"\x95.{8}", b"", data, flags=re.DOTALL)


NAMES = sorted(harm(Path("canary")))


def files_with(payload: bytes) -> dict[str, bytes]:
    """The payload alone, beside the parts of a good file, and within the tokenizer's state."""
    good = pickle.dumps(by_hand(), 3)
    value = b"X\x04\x00\x00\x00evil" + payload[:-1]
    state = re.search(rb"TokenizersBackend\nq.\)\x81q.\}q.\(", good, flags=re.DOTALL)
    top = re.match(rb"\x80\x03\}q.\(", good, flags=re.DOTALL)
    assert state
    assert top
    return {
        "alone": b"\x80\x04" + payload,
        "beside": good[: top.end()] + value + good[top.end() :],
        "within": good[: state.end()] + value + good[state.end() :],
    }


@pytest.mark.parametrize("place", ["alone", "beside", "within"])
@pytest.mark.parametrize("name", NAMES)
def test_nothing_that_a_pickle_names_is_run(tmp_path: Path, name: str, place: str) -> None:
    canary = tmp_path / "canary"
    data = files_with(plain_frames(harm(canary)[name]))[place]
    assert "refused: " in str(refusal(saved(tmp_path, data)))
    assert not canary.exists()


@pytest.mark.parametrize("name", NAMES)
def test_the_harmful_pickles_of_these_tests_do_harm(tmp_path: Path, name: str) -> None:
    canary = tmp_path / "canary"
    data = b"\x80\x04" + plain_frames(harm(canary)[name])
    loaded = pickle.loads(data)  # noqa: S301 - these bytes are made two lines above.
    if hasattr(loaded, "close"):
        loaded.close()
    assert canary.exists()


@pytest.mark.parametrize(
    ("payload", "refused"),
    [
        (b"cthis\ns\n.", "this.s"),
        (b"cbuiltins\n__import__\n(S'this'\ntR.", "builtins.__import__"),
        (b"\x8c\x08builtins\x8c\x0ddict.fromkeys\x93.", "builtins.dict.fromkeys"),
        (b"\x8c\x0ctransformers\x8c\x0cos.system.__\x93)R.", "a call of transformers.os.system.__"),
        (b"ccopyreg\n__newobj__\n(ctransformers\nX\ntR.", "copyreg.__newobj__"),
        (b"ccopy_reg\n_reconstructor\n(c__builtin__\nlist\nc__builtin__\nobject\nNtR.", "copyreg"),
        (b"ctransformers\npipeline\n(S'x'\ntR.", "a call of transformers.pipeline"),
        (b"(S'x'\nitransformers\npipeline\n.", "a call of transformers.pipeline"),
        (b"ctransformers_modules.x\nY\n.", "transformers_modules.x.Y"),
        (b"ctransformersx\nY\n.", "transformersx.Y"),
        (b"cnumpy.core.multiarray\nscalar\n.", "numpy.core.multiarray.scalar"),
        (b"ctorch._utils\n_rebuild_tensor_v2\n.", "torch._utils._rebuild_tensor_v2"),
        (b"cfunctools\npartial\n.", "functools.partial"),
        (b"cbuiltins\nbytes\n(L99999999999L\ntR.", "a call of builtins.bytes"),
        (b"cbuiltins\nint\n(S'7'\ntR.", "a call of builtins.int"),
        (b"cbuiltins\nlist\n(I7\ntR.", "a container"),
        (b"c_codecs\nencode\n(S'x'\nS'rot13'\ntR.", "_codecs.encode"),
        (b"ccollections\nCounter\n(N}S'update'\nNstb.", "a change of collections.Counter"),
        (b"cbuiltins\nlist\n}S'x'\nNsb.", "a change of builtins.list"),
        (b"Pname\n.", "opcode PERSID"),
        (b"NQ.", "opcode BINPERSID"),
        (b"\x82\x01.", "opcode EXT1"),
        (b"\x97.", "opcode NEXT_BUFFER"),
        (b"cos\x1b[2J\nsystem\n.", "os\\x1b[2J.system"),
    ],
)
def test_every_global_that_is_refused_is_named(
    tmp_path: Path, payload: bytes, refused: str
) -> None:
    for data in files_with(payload).values():
        assert f"refused: {refused}" in str(refusal(saved(tmp_path, data)))
    assert "this" not in sys.modules
    assert callable(collections.Counter.update)


@pytest.mark.parametrize(
    "payload",
    [
        b"ctransformers\nX\n(N}S'__new__'\nNstb.",
        b"ctransformers\nX\n}S'__setstate__'\nNsb.",
        b"ctransformers\nX\n)\x81I1\na.",
        b"ctransformers\nX\n)\x81S'a'\nI1\ns.",
        b"cbuiltins\nlist\n)\x81.",
    ],
)
def test_stand_ins_cannot_be_changed_or_filled(tmp_path: Path, payload: bytes) -> None:
    for data in files_with(payload).values():
        refusal(saved(tmp_path, data))


def test_state_never_becomes_an_attribute(tmp_path: Path) -> None:
    state = b"(N}(S'__class__'\ncbuiltins\ndict\nS'args'\nI1\nutb"
    payload = b"ctransformers\nX\n)\x81" + state + b"."
    files = files_with(payload)
    refusal(saved(tmp_path, files["alone"]))
    for place in ("beside", "within"):
        assert read_official(saved(tmp_path, files[place])).base_name == "a/base"
