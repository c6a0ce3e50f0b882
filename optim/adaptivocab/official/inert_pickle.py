"""A pickle read without running it: plain containers, and stand-ins for every object.

Loaded with `pickle` a file may do anything. Here nothing is imported and nothing is called.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

from optim.errors import InputError

MOST_BYTES = 256 << 20
"""Of a file; one of a vocabulary of 131,072 tokens has 17 MB and takes seconds."""
_MOST_OPCODES = 8_000_000
_MOST_WORK = 100_000_000
"""Objects that are put into others, each counted with all that it holds, over the whole file."""
_MOST_DEPTH = 64

_PUTS = {"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"}
_GETS = {"GET", "BINGET", "LONG_BINGET"}
_POPS = {"APPEND": 1, "BUILD": 1, "SETITEM": 2, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_POPS |= {"REDUCE": 2, "NEWOBJ": 2, "NEWOBJ_EX": 3, "STACK_GLOBAL": 2}
_TO_MARK = {"TUPLE", "LIST", "DICT", "FROZENSET", "INST", "OBJ", "APPENDS", "SETITEMS", "ADDITEMS"}
_IN_PLACE = {"APPEND", "BUILD", "SETITEM", "APPENDS", "SETITEMS", "ADDITEMS"}
_REFUSED = {"PERSID", "BINPERSID", "EXT1", "EXT2", "EXT4", "NEXT_BUFFER", "READONLY_BUFFER"}


def refuse(path: Path, field: str | None, problem: str) -> NoReturn:
    """Raise the InputError of a file that is not what it should be."""
    raise InputError(
        problem,
        source=path,
        field=field,
        mend="Give the patch_tokenizer.pkl that create_patch_tokenizer.py of AdaptiVocab writes",
    )


class _RefusedError(Exception):
    """The pickle asks for what is never done."""


class StandInType(type):
    """Classes that a pickle names, of which none is ever imported, called or changed."""

    module: str
    name: str

    def __call__(cls, *args: object, **kwargs: object) -> NoReturn:
        raise _RefusedError(f"refused: a call of {cls.module}.{cls.name}")

    def __setattr__(cls, name: str, value: object) -> NoReturn:
        raise _RefusedError(f"refused: a change of {cls.module}.{cls.name}")


class StandIn(metaclass=StandInType):
    """An object that a pickle describes: `args` of its making, and its `state`, as they are."""

    __slots__ = ("args", "kwargs", "state")
    module = name = ""
    args: tuple[object, ...]
    kwargs: dict[str, object]
    state: object

    def __new__(cls, *args: object, **kwargs: object) -> StandIn:
        made = object.__new__(cls)
        made.args, made.kwargs, made.state = args, kwargs, None
        return made

    def __setstate__(self, state: object) -> None:
        self.state = state


class _Maker:
    """A callable that pickles name, and what is done when they call it."""

    __slots__ = ("_make", "_name")

    def __init__(self, name: str, make: Callable[..., object] | None) -> None:
        self._name, self._make = name, make

    def __call__(self, *args: object) -> object:
        if self._make is None:
            raise _RefusedError(f"refused: a call of {self._name}")
        return self._make(*args)

    def __setstate__(self, state: object) -> NoReturn:
        # Without it, a pickle could set attributes, for all later readings as well.
        raise _RefusedError(f"refused: a change of {self._name}")


def _copier(kind: Callable[..., object]) -> Callable[..., object]:
    def copy(*args: object) -> object:
        plain = (list, tuple, set, frozenset, dict)
        if len(args) > 1 or any(type(arg) not in plain for arg in args):
            raise _RefusedError("refused: a container that is not made from another one")
        return kind(*args)

    return copy


def _latin1(text: object, encoding: object) -> bytes:
    """How protocols 0 to 2 write bytes."""
    if type(text) is not str or encoding != "latin1":
        raise _RefusedError("refused: _codecs.encode of anything but bytes")
    return text.encode("latin1")


def _no_bytes(*args: object) -> bytes:
    """How protocols 0 to 2 write empty bytes; `bytes(n)` could take all memory."""
    if args:
        raise _RefusedError("refused: a call of builtins.bytes")
    return b""


def _reconstructed(kind: object, base: object, state: object) -> StandIn:
    """How protocols 0 and 1 make an object."""
    if not (isinstance(kind, type) and issubclass(kind, StandIn)):
        raise _RefusedError("refused: copyreg._reconstructor of a plain class")
    return StandIn.__new__(kind, base, state)


_MAKERS: dict[str, Callable[..., object] | None] = {
    "builtins.dict": _copier(dict),
    "builtins.list": _copier(list),
    "builtins.tuple": _copier(tuple),
    "builtins.set": _copier(set),
    "builtins.frozenset": _copier(frozenset),
    "builtins.bytes": _no_bytes,
    "builtins.str": None,
    "builtins.int": None,
    "builtins.float": None,
    "builtins.bool": None,
    "builtins.object": None,
    "collections.OrderedDict": _copier(dict),
    "collections.Counter": _copier(dict),
    "collections.defaultdict": lambda *factory: {},
    "_codecs.encode": _latin1,
    "copyreg._reconstructor": _reconstructed,
}
"""Why not the classes: a pickle can set attributes on them, and ask for costly copies."""
_PYTHON2 = {"__builtin__": "builtins", "copy_reg": "copyreg"}
"""Names that protocols 0 to 2 write."""


class _Unpickler(pickle.Unpickler):
    """Builds plain containers and stand-ins, and gives a pickle nothing that it could run."""

    def find_class(self, module: str, name: str) -> object:
        full = f"{_PYTHON2.get(module, module)}.{name}"
        if full in _MAKERS:
            return _Maker(full, _MAKERS[full])
        if module.partition(".")[0] in ("transformers", "tokenizers"):
            return StandInType("StandIn", (StandIn,), {"module": module, "name": name})
        raise _RefusedError(f"refused: {ascii(f'{module}.{name}'[:100])[1:-1]}")


def load_inert(path: Path) -> object:
    """What a pickle describes, of plain containers and `StandIn` objects; nothing in it is run.

    Raises InputError where it is no whole pickle, asks for anything but plain containers and
    classes of transformers and tokenizers, or would take more memory or time than a vocabulary.
    """
    if not path.is_file():
        refuse(path, None, "is not a file")
    try:
        with path.open("rb") as stream:
            data = stream.read(MOST_BYTES + 1)
    except OSError as error:
        refuse(path, None, f"cannot be read ({error.strerror or error})")
    if len(data) > MOST_BYTES:
        refuse(path, None, f"has more than {MOST_BYTES >> 20} MiB")
    try:
        _require_modest(data)
        return _Unpickler(io.BytesIO(data)).load()
    except _RefusedError as error:
        refuse(path, None, str(error))
    except Exception as error:  # A pickle that is cut off or made up can raise anything.
        what = f"{type(error).__name__}: {ascii(str(error))[1:-1][:200]}"
        refuse(path, None, f"is not a whole pickle ({what})")


def _require_modest(data: bytes) -> None:
    """Walk over a pickle's opcodes, building nothing; refuse what would take much memory or time.

    Every object is counted as [all that it holds, depth]. Tuples within tuples can stand for 2^n
    objects in n opcodes, which costs as much when they are hashed; a memo index costs its size.
    """
    stack: list[list[int] | None] = []  # None is a mark.
    memo: dict[int, list[int] | None] = {}
    work = 0
    opcodes: Iterator[tuple[Any, Any, Any]] = pickletools.genops(data)
    for num_opcodes, (opcode, arg, place) in enumerate(opcodes, start=1):
        name = opcode.name
        if name in _REFUSED:
            raise _RefusedError(f"refused: opcode {name}")
        if num_opcodes > _MOST_OPCODES:
            raise _RefusedError("has too many opcodes for a vocabulary")
        if name in _GETS:
            stack.append(memo[arg])
        elif name in _PUTS:
            index = len(memo) if arg is None else arg
            if index > num_opcodes:
                raise _RefusedError(f"refused: a memo of {index} places")
            memo[index] = stack[-1]
        elif name == "MARK":
            stack.append(None)
        elif name == "DUP":
            stack.append(stack[-1])
        elif name == "POP":
            stack.pop()
        elif name == "STOP":
            if num_after := len(data) - place - 1:
                raise _RefusedError(f"has {num_after} bytes after its end")
        elif name not in ("PROTO", "FRAME"):
            work += _walk(stack, name, arg)
            if work > _MOST_WORK:
                raise _RefusedError("holds too much within each other for a vocabulary")


def _walk(stack: list[list[int] | None], name: str, arg: object) -> int:
    """Do to the stack of sizes what an opcode does to the stack of objects; the work of it."""
    taken = [stack.pop() for _ in range(_POPS.get(name, 0))]
    if name in _TO_MARK or name == "POP_MARK":
        while (item := stack.pop()) is not None:
            taken.append(item)
    if name == "POP_MARK":
        return 0
    if name in _IN_PLACE:
        target = stack[-1]
    else:
        size = len(arg) >> 6 if isinstance(arg, str | bytes | bytearray) else 0
        if isinstance(arg, int) and arg.bit_length() > 64:
            # Many of these can be made to share one hash, and a dict of them takes n^2 time.
            size = arg.bit_length() + 10_000
        target = [1 + size, 0]
        stack.append(target)
    if target is None or None in taken:
        raise ValueError(f"{name} takes a mark for an object")
    items = [item for item in taken if item is not None]
    work = 1 + sum(item[0] for item in items)
    target[0] += work - 1
    target[1] = max([target[1], *(item[1] + 1 for item in items)])
    if target[1] > _MOST_DEPTH:
        raise _RefusedError("holds containers too deep within each other")
    return work
