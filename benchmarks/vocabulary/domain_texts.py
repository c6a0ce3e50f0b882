"""Texts of single domains that an installation has, for what is measured by domain.

Nothing is downloaded and nothing is copied into the repository. A domain is read from files, which
are taken in an order that their names' hashes give until there are enough bytes of them, and parted
whole (file by file) by the hash of their content.

Boilerplate would flatter every vocabulary, since a page that is repeated a hundred times is one
token long in the end. So families of pages made from one mould are left out, as is what a generator
writes at the head of every page; what is left out is said beside each domain.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib
import re
import sysconfig
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

from optim.adaptivocab.corpus import Corpus, gather

NUM_BYTES = 3_000_000
"""Of each domain."""
LEAST_BYTES = 1_000_000
"""Of a domain that is of use; with less, what is held out is a handful of pages."""
LARGEST_FAMILY = 200
"""Man pages whose names begin alike, from which on they are taken for the output of a program."""
SHARE = 0.1
"""Of the files, to each of dev and held out."""

MAN = Path("/usr/share/man")
NODE = Path("/usr/share/doc/nodejs/api")
RUST = Path.home() / ".rustup" / "toolchains"
RUST_BOOKS = [
    "book", "cargo", "clippy", "edition-guide", "embedded-book", "error_codes", "nomicon",
    "reference", "rust-by-example", "rustc", "rustdoc", "style-guide",
]  # fmt: skip


@dataclass(frozen=True)
class Domain:
    """Where a domain's texts come from."""

    name: str
    what: str
    """What is read and what is left out, and why."""
    mend: str
    """How an installation comes by it."""
    texts: Callable[[], Iterator[str]]


def read(domain: Domain, num_bytes: int) -> Corpus | None:
    """Up to `num_bytes` of a domain; None where the installation has less than `LEAST_BYTES`."""
    texts = list(_up_to(domain.texts(), num_bytes))
    if sum(len(text.encode()) for text in texts) < min(LEAST_BYTES, num_bytes // 2):
        return None
    return gather(texts, num_bytes, SHARE, field=domain.name)


def _up_to(texts: Iterator[str], num_bytes: int) -> Iterator[str]:
    """Texts while they fit; one that would be a tenth of all or more is passed over."""
    longest, left = num_bytes // 10, num_bytes
    for text in texts:
        size = len(text.encode())
        if size > longest or not text.strip():
            continue
        if size > left:
            return
        left -= size
        yield text


def _shuffled(files: Iterable[Path], root: Path) -> list[Path]:
    """Files in the order of their relative names' hashes: one that no folder decides."""
    return sorted(
        files, key=lambda file: hashlib.sha256(str(file.relative_to(root)).encode()).digest()
    )


def _plain(files: Iterable[Path]) -> Iterator[str]:
    for file in files:
        try:
            yield file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            continue


# --- domains ---------------------------------------------------------------------------------


def _python() -> Iterator[str]:
    root = Path(sysconfig.get_paths()["stdlib"])
    skipped = {"test", "tests", "idle_test", "site-packages", "dist-packages", "lib2to3"}
    skipped |= {"encodings", "pydoc_data", "__pycache__", "turtledemo", "ensurepip"}
    files = [
        file
        for file in root.rglob("*.py")
        if not skipped.intersection(file.relative_to(root).parts)
        and not re.search(r"_sysconfig|entities\.py|stringprep\.py|-gnu", str(file))
    ]
    topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    # By turns, so that a part of the domain has both.
    chapters = sorted(topics, key=lambda name: hashlib.sha256(name.encode()).digest())
    sources = _plain(_shuffled(files, root))
    for number, source in enumerate(sources):
        yield source
        if number < len(chapters):
            yield topics[chapters[number]]


def _man() -> Iterator[str]:
    pages = [page for n in range(1, 9) for page in MAN.glob(f"man{n}/*") if not page.is_symlink()]
    families = Counter(_family(page) for page in pages)
    kept = [page for page in pages if families[_family(page)] < LARGEST_FAMILY]
    yield from _decompressed(_shuffled(kept, MAN))


def _decompressed(pages: Iterable[Path]) -> Iterator[str]:
    """Man pages' sources from the title on, without comments."""
    for page in pages:
        try:
            data = page.read_bytes()
            text = (gzip.decompress(data) if page.suffix == ".gz" else data).decode()
        except (OSError, EOFError, UnicodeDecodeError):
            continue
        start = re.search(r"^\.(TH|Dd)\b", text, re.MULTILINE)
        if start:
            yield re.sub(r"^[.']\\\".*\n", "", text[start.start() :], flags=re.MULTILINE)


def other_languages(num_bytes: int) -> list[str]:
    """Man pages in other languages than English, up to so many bytes; none where there are none.

    No domain for new tokens, but what is hit first where rare tokens make room for them.
    """
    pages = [page for page in MAN.glob("[a-z][a-z]*/man*/*") if not page.is_symlink()]
    foreign = [page for page in pages if not page.parent.parent.name.startswith(("man", "cat"))]
    return list(_up_to(_decompressed(_shuffled(foreign, MAN)), num_bytes))


def _family(page: Path) -> str:
    return re.split(r"[-_.:+]", page.name)[0]


def _node() -> Iterator[str]:
    return _plain(_shuffled((page for page in NODE.glob("*.md") if page.name != "all.md"), NODE))


def _rust() -> Iterator[str]:
    for toolchain in sorted(RUST.glob("stable*")):
        root = toolchain / "share" / "doc" / "rust" / "html"
        pages = [
            page
            for book in RUST_BOOKS
            for page in (root / book).rglob("*.html")
            if page.name not in ("print.html", "toc.html", "404.html")
            and not any("-edition" in part for part in page.relative_to(root / book).parts)
        ]
        for html in _plain(_shuffled(pages, root)):
            if '<html lang="en"' in html[:1000]:
                text = _Prose.of(html)
                if len(text) > 300:
                    yield text
        return


class _Prose(HTMLParser):
    """The text of a page's `<main>`, without scripts and buttons."""

    BLOCKS = frozenset(
        ("p", "div", "li", "h1", "h2", "h3", "h4", "pre", "tr", "table", "ul", "ol", "dt", "dd",
         "br", "blockquote")
    )  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        self._parts: list[str] = []
        self._is_main, self._num_hidden, self._num_pre = False, 0, 0

    @classmethod
    def of(cls, html: str) -> str:
        parser = cls()
        parser.feed(html[html.find("<main") :])
        return re.sub(r"\n[ \t]*\n[\s]*\n", "\n\n", "".join(parser._parts)).strip() + "\n"

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self._is_main |= tag == "main"
        self._num_hidden += tag in ("script", "style", "button", "nav")
        self._num_pre += tag == "pre"
        if self._is_main and tag in self.BLOCKS:
            self._parts.append("\n")

    def handle_endtag(self, tag: str) -> None:
        if tag == "main":
            self._is_main = False
        self._num_hidden -= tag in ("script", "style", "button", "nav")
        self._num_pre -= tag == "pre"
        if self._is_main and tag in self.BLOCKS:
            self._parts.append("\n")

    def handle_data(self, data: str) -> None:
        if self._is_main and not self._num_hidden:
            self._parts.append(data if self._num_pre else re.sub(r"\s+", " ", data))


DOMAINS = (
    Domain(
        "python",
        "sources with docstrings of the running Python's standard library and its language "
        "reference (pydoc_data.topics), in turns; no tests, tables or code pages",
        "Every Python has the sources; Debian's may lack pydoc_data: install libpython3-stdlib",
        _python,
    ),
    Domain(
        "man",
        "man pages of sections 1 to 8 as their source, from the title line on; not families of "
        f"{LARGEST_FAMILY} or more pages (gcloud has 16,631 that are the same text but for a "
        "name; git's 151 differ and stay), nor what stands before the title (licences, and "
        "pod2man's macros, the same in each), nor comments, nor links",
        "Install the Debian packages man-db, manpages and manpages-dev",
        _man,
    ),
    Domain(
        "node",
        "Node.js' API reference, one Markdown file per module: 64 files, so what is held out is "
        "six of them, and figures move by a point or two with the split",
        "Install nodejs from NodeSource, which has /usr/share/doc/nodejs/api/*.md",
        _node,
    ),
    Domain(
        "rust",
        "the books that come with Rust (" + " ".join(RUST_BOOKS) + "), text of <main> only; not "
        "the libraries' reference (core's pages are std's again), old editions and whole-book "
        "pages",
        "rustup component add rust-docs",
        _rust,
    ),
)
