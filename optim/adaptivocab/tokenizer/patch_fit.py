"""Whether patches are of the base that they are laid over."""

from __future__ import annotations

from tokenizers import Tokenizer

from optim.adaptivocab.tokenizer.segmentation import Patches
from optim.errors import InputError


def used_ids(patches: Patches) -> set[int]:
    """Every id that patches name."""
    parts = {*patches.removed.values(), *patches.new.values()}
    return {*patches.removed, *patches.new, *(k for part in parts for k in part)}


def require_fit(patches: Patches, backend: Tokenizer, barriers: set[int]) -> None:
    """Raises InputError where patches are not of this base."""

    def refuse(field: str, problem: str) -> None:
        raise InputError(problem, field=field, mend="Prepare the vocabulary again for this base")

    for name, table in (("removed", patches.removed), ("new", patches.new)):
        for token, parts in table.items():
            missing = [k for k in parts if backend.id_to_token(k) is None]
            if missing:
                refuse(f"{name}.{token}", f"the base has no token {missing[0]}")
            taken = [k for k in (token, *parts) if k in barriers]
            if taken:
                refuse(f"{name}.{token}", f"{taken[0]} is a special or an added token")
    for token in patches.new:
        if token not in patches.removed and backend.id_to_token(token) is not None:
            refuse(f"new.{token}", "is the id of a base token that is not removed")
    for token, parts in patches.removed.items():
        whole = backend.id_to_token(token)
        names = [str(backend.id_to_token(part)) for part in parts]
        if whole is None:
            refuse(f"removed.{token}", f"the base has no token {token}")
        elif whole != "".join(names) and _bytes(whole) != b"".join(map(_bytes, names)):
            refuse(f"removed.{token}", f"{whole!r} is not what its parts spell, {''.join(names)!r}")


def _bytes(token: str) -> bytes:
    """A byte of SentencePiece's fallback, or the text itself."""
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        try:
            return bytes([int(token[3:5], 16)])
        except ValueError:
            pass
    return token.encode()
