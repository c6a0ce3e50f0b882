"""`driver.lock`: who is running a trial now, so that a second driver does not do its work again.

It is advice, not what correctness rests on: that is the commit, where the first writer wins. The
holder renews it every `BEAT_S`; a lock that was not renewed for `STALE_S` is a dead driver's, and
one of a process of this machine that is gone is so at once.
"""

from __future__ import annotations

import json
import logging
import math
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime

from cluster.storage.creation import create_alone
from cluster.storage.holder import BEAT_S, Holder
from cluster.storage.open_store import Store
from optim.errors import InputError

LOCK_FILE = "driver.lock"
JOINED_FILE = "driver.joined"
"""Says to the holder that another driver runs along."""
_CONFIRM_S = BEAT_S + 2.0
"""How long a lock is watched whose times say nothing: another machine's clock may differ from this
one's, and a clock may have been set since."""

_COMPANY_S = 1.0

log = logging.getLogger("optrial.driver")
OnStage = Callable[[str], None]


class LockedError(RuntimeError):
    """Another driver is running the trial. The command line prints it and exits with code 3."""

    def __init__(self, output: str, holder: Holder) -> None:
        self.output, self.holder = output, holder
        super().__init__(
            f"{output}: another driver is running this trial ({holder.text}; last heard from "
            f"{max(0.0, holder.silent_s):.0f} s ago). Wait for it, stop it, or run along with it: "
            "--join"
        )


def read_holder(store: Store) -> Holder | None:
    """Who holds the lock; None where nobody does, or where it is not readable as one."""
    try:
        found = json.loads(store.read(LOCK_FILE))
        return Holder.read(found)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except InputError:
        raise  # a lock that cannot be seen is not one that may be taken over
    except (ValueError, TypeError, AttributeError):
        # Another version's, or a file that is none: silent since ever, so that it is taken over.
        return Holder("unreadable", "?", 0, "", "?", 0.0)


def require_free(store: Store, output: str) -> None:
    """LockedError where a driver that seems alive holds the lock; changes nothing."""
    holder = read_holder(store)
    if holder is not None and not holder.is_gone and not holder.is_quiet:
        raise LockedError(output, holder)


class DriverLock:
    """This process's hold on a trial's results, renewed by a thread until it is released."""

    def __init__(self, store: Store, output: str) -> None:
        self.store, self.output = store, output
        self.is_held = False
        self._has_joined = False
        self._looked_for_company = -math.inf
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        started_at = datetime.now(UTC).isoformat(timespec="seconds")
        self._own = Holder.own(uuid.uuid4().hex, started_at)
        self._marks: dict[bytes, float] = {}

    def acquire(self, on_stage: OnStage = lambda stage: None) -> None:
        """Take the lock, a dead driver's too; LockedError where a living one holds it."""
        while not self._try(on_stage):
            holder = read_holder(self.store)
            if holder is not None and not self._is_dead(holder, on_stage):
                raise LockedError(self.output, holder)
        # A driver that was killed while it ran along has left it.
        self.store.delete(JOINED_FILE)
        self._keep()

    def join(self, on_stage: OnStage = lambda stage: None) -> None:
        """Run along with whoever holds the lock, and take it when they have ended."""
        try:
            self.acquire(on_stage)
        except LockedError as error:
            on_stage(f"running along with {error.holder.text}")
            self._has_joined = True
            self.store.replace(JOINED_FILE, self._own.id.encode())
            self._keep()

    def has_company(self) -> bool:
        """Whether another driver runs along; looks once in `_COMPANY_S` at most."""
        if self._has_joined:
            return True
        if time.monotonic() - self._looked_for_company < _COMPANY_S:
            return False
        self._looked_for_company = time.monotonic()
        try:
            return self.store.exists(JOINED_FILE)
        except (OSError, InputError):
            return False  # object stores fail by InputError: seen the next time, or not at all

    def release(self) -> None:
        """Give the lock up, if it is still ours. May be called again."""
        self._ended.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout=1.0)
        is_held, self.is_held = self.is_held, False
        if not is_held:
            return
        try:
            holder = read_holder(self.store)
            if holder is not None and holder.id == self._own.id:
                self.store.delete(JOINED_FILE)
                self.store.delete(LOCK_FILE)
        except (OSError, InputError) as error:
            log.warning("the driver's lock could not be released", extra={"reason": str(error)})

    # --- taking it ------------------------------------------------------------------------------

    def _try(self, on_stage: OnStage) -> bool:
        """Whether it is ours now."""
        if create_alone(self.store, LOCK_FILE, self._beaten()):
            self.is_held = True
            return True
        holder = read_holder(self.store)
        if holder is None or not self._is_dead(holder, on_stage):
            return False
        on_stage(f"taking over from {holder.text}, which has ended")
        log.warning("lock taken over", extra={"holder": holder.text})
        self.is_held = self._take_over(holder)
        return self.is_held

    def _is_dead(self, holder: Holder, on_stage: OnStage) -> bool:
        if holder.is_gone:
            return True
        if not holder.is_quiet:
            return False
        if holder.is_of_this_boot or holder.host == "?":
            return True  # one clock that nobody sets: it is silent for as long as it seems
        on_stage(f"nothing was heard from {holder.text}; waiting {_CONFIRM_S:.0f} s for it")
        self._ended.wait(_CONFIRM_S)
        return read_holder(self.store) == holder

    def _take_over(self, dead: Holder) -> bool:
        """Replace a dead driver's lock; of those who try at once, one succeeds."""
        marker = f"{LOCK_FILE}.{dead.id[:12]}"
        if not self.store.create(marker, self._own.id.encode()):
            self._drop_old(marker)
            return False
        try:
            # Whoever was quicker has replaced it already.
            if read_holder(self.store) != dead:
                return False
            self.store.replace(LOCK_FILE, self._beaten())
            return True
        finally:
            self.store.delete(marker)

    def _drop_old(self, marker: str) -> None:
        """Remove the mark of a take-over that was itself cut off; wait a little for one that is
        under way."""
        try:
            mark = self.store.read(marker)
        except InputError:
            raise
        except FileNotFoundError:
            return
        # By this process's own clock: others' may be set.
        if time.monotonic() - self._marks.setdefault(mark, time.monotonic()) > BEAT_S:
            self.store.delete(marker)
        else:
            self._ended.wait(0.2)

    # --- keeping it -----------------------------------------------------------------------------

    def _beaten(self) -> bytes:
        self._own = replace(self._own, beat_at=time.time(), beat_s=time.monotonic())
        return json.dumps(asdict(self._own), indent=1).encode()

    def _keep(self) -> None:
        self._thread = threading.Thread(target=self._beat_on, name="driver-lock", daemon=True)
        self._thread.start()

    def _beat_on(self) -> None:
        while not self._ended.wait(BEAT_S):
            try:
                self._beat()
            except Exception as error:
                # A full disk or a network that is down must not end the run for want of a beat.
                log.warning("the driver's lock was not renewed", extra={"reason": str(error)})

    def _beat(self) -> None:
        if not self.is_held:
            self._try(lambda stage: None)
            return
        holder = read_holder(self.store)
        if holder is not None and holder.id != self._own.id:
            # This process was stopped for so long that another took its place; both may go on.
            log.warning("another driver has taken the lock", extra={"holder": holder.text})
            self.is_held = False
        elif not self._ended.is_set():
            self.store.replace(LOCK_FILE, self._beaten())


@contextmanager
def driving(
    store: Store, output: str, *, joins: bool = False, on_stage: OnStage = lambda stage: None
) -> Iterator[DriverLock | None]:
    """Hold the lock, or run along with whoever holds it; None where it cannot be written.

    LockedError where another driver holds it and `joins` is False.
    """
    lock = DriverLock(store, output)
    try:
        yield lock if _can_take(lock.join if joins else lock.acquire, on_stage) else None
    finally:
        lock.release()


def _can_take(take: Callable[[OnStage], None], on_stage: OnStage) -> bool:
    """Take a lock; False where the place admits no writing."""
    try:
        take(on_stage)
    except (OSError, InputError) as error:
        # Results that are complete may lie where nobody can write; what has to be written will say
        # so itself. What is full, unreachable or not there at all is no such place.
        if not isinstance(error, OSError) and not isinstance(error.__cause__, PermissionError):
            raise
        log.warning("no lock", extra={"reason": str(error)})
        return False
    return True
