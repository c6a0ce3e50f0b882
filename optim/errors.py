"""The two kinds of failure that a person who uses Optrial can cause or meet."""

from __future__ import annotations


class InputError(ValueError):
    """Bad input: a spec, dataset, model, artifact or results folder that cannot be used.

    The message is one clear sentence per part: what is wrong, in which `source` (a file or URL) and
    `field`, and the `mend`. The command line prints it without a traceback and exits with code 2.
    """

    def __init__(
        self,
        problem: str,
        *,
        source: object | None = None,
        field: str | None = None,
        mend: str | None = None,
    ) -> None:
        self.problem = problem
        self.source = None if source is None else str(source)
        self.field = field
        self.mend = mend
        where = ": ".join(part for part in (self.source, field) if part)
        text = f"{where}: {problem}" if where else problem
        super().__init__(f"{text}. {mend}" if mend else text)

    def __reduce__(self) -> tuple[object, ...]:
        # Exceptions cross process borders (Ray); keyword-only arguments need help to be rebuilt.
        return _rebuild_input_error, (self.problem, self.source, self.field, self.mend)


def _rebuild_input_error(
    problem: str, source: str | None, field: str | None, mend: str | None
) -> InputError:
    return InputError(problem, source=source, field=field, mend=mend)


class SequenceError(RuntimeError):
    """One sequence cannot be generated (too long, not finite, no memory); others go on."""


class NoRoomError(SequenceError):
    """There is no memory for a sequence now; there may be when another one has ended."""


class SlotLostError(NoRoomError):
    """For want of memory a slot lost what it held: its sequence has to begin again."""
