"""The demo model's text: documentation and sources that every Python installation carries.

Documents are taken from the running interpreter's own standard library, so nothing has to be
downloaded and no text is copied into this repository. Docstrings are read from the source files
by `ast`, without importing the modules; only a fixed list of harmless extension modules is
imported, because their docstrings exist nowhere else.

A document is held out by the hash of its own text, so the split needs no list of names and the
same text falls on the same side wherever it is found. Python versions word their documentation
differently: a text that is held out under one version may have been trained on, slightly
reworded, under another.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import inspect
import re
import sysconfig
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Literal

Domain = Literal["language", "networking", "data", "other"]

HELD_OUT_ONE_IN = 11
"""One document in this many is held out (`is_held_out`)."""

SHARED_PARAGRAPH_CHARACTERS = 50
"""A paragraph this long or longer that is also in a held-out document is never trained on."""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_NETWORKING = _words(
    "asyncio asynchat asyncore _asyncio cgi email ftplib http imaplib ipaddress mailbox nntplib "
    "poplib select _socket selectors smtplib smtpd socket socketserver ssl _ssl telnetlib urllib "
    "uuid webbrowser wsgiref xmlrpc xml html mimetypes netrc quopri base64 binascii hmac secrets "
    "hashlib _hashlib"
)
_DATA = _words(
    "_bisect _collections _csv _datetime _decimal _heapq _json _pickle _pydatetime _pydecimal "
    "_random _sqlite3 _statistics _struct array bisect calendar cmath collections configparser "
    "copy csv datetime dbm decimal difflib enum fractions graphlib heapq itertools json "
    "marshal math numbers operator _operator pickle pickletools plistlib pprint queue random "
    "shelve sqlite3 statistics string struct textwrap tomllib unicodedata weakref zlib gzip bz2 "
    "lzma tarfile zipfile zoneinfo"
)
_EXTENSIONS = _words(
    "_asyncio _bisect _collections _csv _datetime _decimal _functools _hashlib _heapq _io _json "
    "_operator _pickle _random _socket _sqlite3 _ssl _statistics _struct _thread array binascii "
    "builtins cmath errno gc itertools marshal math select sys time unicodedata zlib"
)
_SKIPPED_FOLDERS = _words(
    "__pycache__ config encodings ensurepip idlelib lib2to3 lib-dynload msilib pydoc_data "
    "site-packages dist-packages test tests turtledemo"
)
# Tables rather than prose or programs, and files that name the machine they were built on.
_SKIPPED_FILES = re.compile(r"_sysconfig|entities\.py|stringprep\.py|__phello__|pydoc_topics")
_UNDERLINE = re.compile(r"^([*=\-~^\"#])\1{2,}$")


@dataclass(frozen=True, slots=True)
class Document:
    """One text of the corpus; `name` is a dotted name, a topic part, or a source file's path."""

    domain: Domain
    name: str
    text: str

    @property
    def is_source(self) -> bool:
        """Whether this is a module's source: such documents are for training only."""
        return self.name.endswith(".py")


def is_held_out(text: str) -> bool:
    """Whether a document with this text is kept from training, by its SHA-256."""
    digest = hashlib.sha256(text.encode("utf-8")).digest()
    return int.from_bytes(digest[:8], "big") % HELD_OUT_ONE_IN == 0


def documents() -> Iterator[Document]:
    """Every document once, in an order that depends on the Python installation alone.

    Texts that occur several times under one wording are given once, the first time.
    """
    yield from _documents()


@cache
def _documents() -> tuple[Document, ...]:
    distinct: dict[str, Document] = {}
    for found in (_topics(), _extension_documents(), _library_documents()):
        for document in found:
            distinct.setdefault(document.text, document)
    return tuple(distinct.values())


def _is_kept_out(document: Document) -> bool:
    return not document.is_source and is_held_out(document.text)


def held_out_documents() -> Iterator[Document]:
    """The held-out documentation, in the order of `documents`."""
    return (each for each in documents() if _is_kept_out(each))


def training_documents() -> Iterator[Document]:
    """The documents to train on, without any paragraph that a held-out document also has.

    The language reference repeats itself between topics and extension modules repeat the
    docstrings of their Python twins, so splitting by document alone would leak.
    """
    everything = list(documents())
    held_out = {
        key for each in everything if _is_kept_out(each) for key in _paragraph_keys(each.text)
    }
    for each in everything:
        if _is_kept_out(each):
            continue
        kept = [
            paragraph
            for paragraph in each.text.split("\n\n")
            if " ".join(paragraph.split()) not in held_out
        ]
        text = "\n\n".join(kept).strip()
        if text:
            yield Document(each.domain, each.name, text)


def _paragraph_keys(text: str) -> Iterator[str]:
    for paragraph in text.split("\n\n"):
        key = " ".join(paragraph.split())
        if len(key) >= SHARED_PARAGRAPH_CHARACTERS:
            yield key


def _domain(module: str) -> Domain:
    top = module.partition(".")[0]
    if top in _NETWORKING:
        return "networking"
    return "data" if top in _DATA else "other"


def _topics() -> Iterator[Document]:
    topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    for name in sorted(topics):
        for number, text in enumerate(_parts(topics[name])):
            yield Document("language", f"{name}#{number}", text)


def _parts(topic: str) -> Iterator[str]:
    """Cut a topic at headings (parts of 800 characters or more) or after 4000 characters.

    Whole topics differ in length by a factor of a thousand, which would leave the size of the
    held-out split to a few of them.
    """
    current: list[str] = []
    size = 0
    for paragraph in re.split(r"\n\s*\n", topic.strip("\n")):
        lines = paragraph.split("\n")
        heading = len(lines) >= 2 and _UNDERLINE.match(lines[1]) is not None
        limit = 800 if heading else 4000
        if size >= limit and not paragraph.startswith(" "):
            yield "\n\n".join(current)
            current, size = [], 0
        current.append(paragraph.rstrip())
        size += len(paragraph)
    if current:
        yield "\n\n".join(current)


def _library_documents() -> Iterator[Document]:
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py"), key=lambda each: each.relative_to(root).as_posix()):
        relative = path.relative_to(root)
        if any(
            part.partition("-")[0] in _SKIPPED_FOLDERS or part in _SKIPPED_FOLDERS
            for part in relative.parts[:-1]
        ) or _SKIPPED_FILES.search(relative.name):
            continue
        try:
            source = path.read_text(encoding="utf-8")
            with warnings.catch_warnings():
                # Doubtful escapes in the library's sources are not this program's to report.
                warnings.simplefilter("ignore")
                tree = ast.parse(source)
        except (SyntaxError, UnicodeDecodeError):
            continue
        parts = relative.with_suffix("").parts
        module = ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)
        yield from _docstrings(tree, module)
        if len(stripped := _without_docstrings(source, tree)) >= 200:
            yield Document("other", relative.as_posix(), stripped)


def _docstrings(tree: ast.Module, module: str) -> Iterator[Document]:
    """A document for the module, for each class with its methods, and for each function."""
    domain = _domain(module)
    text = ast.get_docstring(tree)
    if text and len(text) >= 40:
        yield Document(domain, module, f"{module}\n\n{text.strip()}")
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            described = list(_described(node, ""))
            if sum(len(each) for each in described) >= 80:
                name = f"{module}.{node.name}"
                yield Document(
                    domain, name, "\n\n".join([f"{module}: {described[0]}", *described[1:]])
                )


def _described(
    node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef, indent: str
) -> Iterator[str]:
    text = (ast.get_docstring(node) or "").strip()
    if isinstance(node, ast.ClassDef):
        bases = ", ".join(ast.unparse(base) for base in node.bases)
        title = f"class {node.name}({bases})" if bases else f"class {node.name}"
        inner = [
            each
            for child in node.body
            if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
            for each in _described(child, indent + "   ")
        ]
    else:
        title = f"{node.name}({ast.unparse(node.args)})"
        inner = []
    if text or inner:
        yield _indented(f"{title}\n\n{text}".strip() if text else title, indent)
        yield from inner


def _indented(text: str, indent: str) -> str:
    return "\n".join(indent + line if line.strip() else "" for line in text.split("\n"))


def _without_docstrings(source: str, tree: ast.Module) -> str:
    """The source with its docstrings cut out, since the held-out ones are among them."""
    lines: list[str | None] = list(source.split("\n"))
    for node in _statements(tree):
        if (
            not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
            or ast.get_docstring(node, clean=False) is None
        ):
            continue
        statement = node.body[0]
        first, last = statement.lineno - 1, statement.end_lineno or statement.lineno
        # `def f(): "text"` on one line leaves no line to cut; its text is short.
        if isinstance(node, ast.Module) or first > node.lineno - 1:
            lines[first:last] = [None] * (last - first)
            if len(node.body) == 1:
                lines[first] = " " * statement.col_offset + "pass"
    text = "\n".join(line.rstrip() for line in lines if line is not None)
    return re.sub(r"\n{4,}", "\n\n\n", text.replace("\f", "")).strip()


def _statements(node: ast.AST) -> Iterator[ast.AST]:
    """The node and all statements within it; leaving out expressions saves most of the walk."""
    yield node
    for field in ("body", "orelse", "finalbody", "handlers", "cases"):
        within = getattr(node, field, None)
        for child in within if isinstance(within, list) else ():
            yield from _statements(child)


def _extension_documents() -> Iterator[Document]:
    for module_name in sorted(_EXTENSIONS):
        try:
            module = importlib.import_module(module_name)
        except ImportError:
            continue
        yield from _runtime_documents(module, module_name)


def _runtime_documents(module: ModuleType, name: str) -> Iterator[Document]:
    domain = _domain(name)
    text = inspect.cleandoc(module.__doc__ or "").strip()
    if len(text) >= 40:
        yield Document(domain, name, f"{name}\n\n{text}")
    for member_name in sorted(vars(module)):
        member = vars(module)[member_name]
        if member_name.startswith("_") or getattr(member, "__module__", name) not in (
            name,
            name.lstrip("_"),
            None,
        ):
            continue
        if not (inspect.isclass(member) or inspect.isroutine(member)):
            continue
        parts = [_runtime_text(member, member_name)]
        if inspect.isclass(member):
            parts[0] = "class " + parts[0]
            parts += [
                _indented(_runtime_text(value, key), "   ")
                for key, value in sorted(vars(member).items())
                if not key.startswith("_")
                and getattr(value, "__doc__", None)
                and not isinstance(value, int | float | str | bytes | tuple)
            ]
        whole = "\n\n".join(parts)
        if len(whole) >= 80:
            yield Document(domain, f"{name}.{member_name}", f"{name}: {whole}")


def _runtime_text(member: object, name: str) -> str:
    # Slots of a few types raise on access, and members may be instances with no text of their own.
    text = getattr(member, "__doc__", None)
    text = inspect.cleandoc(text).strip() if isinstance(text, str) else ""
    signature = getattr(member, "__text_signature__", None) or ""
    signature = signature.replace("$self, ", "").replace("$module, ", "")
    signature = signature.replace("($self)", "()").replace("($module)", "()")
    signature = signature.replace(", /", "").replace("$self", "").replace("$module", "")
    return f"{name}{signature}\n\n{text}".strip()


@cache
def held_out_by_domain() -> dict[Domain, tuple[Document, ...]]:
    """The held-out documents of each domain, in the order of `documents`."""
    found: dict[Domain, list[Document]] = {
        "language": [],
        "networking": [],
        "data": [],
        "other": [],
    }
    for each in held_out_documents():
        found[each.domain].append(each)
    return {domain: tuple(each) for domain, each in found.items()}
