"""How far a known amount of work is, and how long the rest of it will take."""

from __future__ import annotations

import time
from collections.abc import Callable

OnStage = Callable[[str], None]
Clock = Callable[[], float]

REPORT_EVERY_S = 5.0


class Countdown:
    """Counts steps of about equal cost, and says before each where it stands.

    The time left is the mean of the steps that are done times those that are not, so it is said
    from the second step on.
    """

    def __init__(self, num_steps: int, on_stage: OnStage, *, clock: Clock = time.monotonic) -> None:
        self.num_steps, self.on_stage, self.clock = num_steps, on_stage, clock
        self.num_begun = 0
        self._began_s = 0.0

    def step(self, text: str) -> None:
        """Begin the next step: reports `text (3 of 27), 40 s to go`."""
        if not self.num_begun:
            self._began_s = self.clock()
        done = self.num_begun
        self.num_begun += 1
        left = ""
        if done:
            each_s = (self.clock() - self._began_s) / done
            left = f", {duration(each_s * (self.num_steps - done))} to go"
        self.on_stage(f"{text} ({self.num_begun} of {self.num_steps}){left}")


class Passage:
    """How far a text is worked through, said at most every few seconds."""

    def __init__(self, num_bytes: int, on_stage: OnStage, *, clock: Clock = time.monotonic) -> None:
        self.num_bytes, self.on_stage, self.clock = num_bytes, on_stage, clock
        self._began_s = self._said_s = clock()

    def report(self, done: int, text: str) -> None:
        """So many bytes are done: reports `text, 0.3 of 1.0 MiB, 40 s to go`."""
        now_s = self.clock()
        if not done or now_s - self._said_s < REPORT_EVERY_S:
            return
        self._said_s = now_s
        left_s = (now_s - self._began_s) / done * (self.num_bytes - done)
        mib = 1 << 20
        self.on_stage(
            f"{text}, {done / mib:.2f} of {self.num_bytes / mib:.2f} MiB, {duration(left_s)} to go"
        )


def duration(seconds: float) -> str:
    """In the largest unit that leaves two digits to read: 40 s, 3 min, 2.5 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
