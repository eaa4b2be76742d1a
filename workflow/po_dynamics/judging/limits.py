"""What may be asked now: a number of connections that follows the server, and a budget that is never overdrawn."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Condition, Event, Lock

from po_dynamics.errors import InputError
from po_dynamics.settings.judging.calls import Calls, Price

_REFRESH = 5.0  # seconds between two looks at what other jobs have spent


class Stopped(Exception):
    """No further request is wanted: another one ended the job."""


class Gate:
    """At most `most` requests at a time; halved when the server asks for patience, one more after a round of answers.

    Additive increase, multiplicative decrease, as TCP controls congestion (Chiu and Jain 1989).
    """

    def __init__(self, most: int, stop: Event) -> None:
        self.most = self.limit = most
        self._stop, self._changed = stop, Condition()
        self._running, self._answers = 0, 0
        self._cut = self._not_before = 0.0  # monotonic seconds

    @contextmanager
    def request(self) -> Iterator[float]:
        """Waits for a place; yields when the request began.

        Raises:
            Stopped: no further request is wanted.
        """
        with self._changed:
            while (wait := self._not_before - time.monotonic()) > 0 or self._running >= self.limit:
                if self._stop.is_set():
                    break
                self._changed.wait(min(max(wait, 0.05), 0.5))
            if self._stop.is_set():
                raise Stopped
            self._running += 1
        try:
            yield time.monotonic()
        finally:
            with self._changed:
                self._running -= 1
                self._changed.notify_all()

    def answered(self) -> None:
        """Notes an answer."""
        with self._changed:
            self._answers += 1
            if self._answers >= self.limit:
                self._answers, self.limit = 0, min(self.most, self.limit + 1)

    def slower(self, began: float, pause: float) -> None:
        """Notes that the server asked, of a request that `began` then, to wait for `pause` seconds."""
        with self._changed:
            now = time.monotonic()
            self._not_before = max(self._not_before, now + pause)
            if began >= self._cut:  # requests of one round count once
                self._cut, self._answers, self.limit = now, 0, max(1, self.limit // 2)


class Budget:
    """`max_requests` and `max_usd` over all jobs of an experiment.

    `spent` gives requests and USD of ledgers as they were or as other jobs make them. A request reserves what it may
    cost before it is sent, so the limits hold up to the error of that estimate and to what other jobs have under way.
    """

    def __init__(self, calls: Calls, price: Price | None, spent: Callable[[], tuple[int, float]]) -> None:
        self.calls, self.price = calls, price
        self._spent, self._lock = spent, Lock()
        self._elsewhere, self._looked = (0, 0.0), -_REFRESH
        self.requests, self.usd = 0, 0.0  # of this process

    def cost(self, prompt_tokens: float, reply_tokens: float) -> float:
        """USD; 0 where no price is stated."""
        if self.price is None:
            return 0.0
        return (prompt_tokens * self.price.input + reply_tokens * self.price.output) / 1e6

    def reserve(self, usd: float) -> None:
        """Takes one request of at most about `usd`.

        Raises:
            InputError: that would exceed a limit.
        """
        with self._lock:
            limited = self.calls.max_requests is not None or self.calls.max_usd is not None
            if limited and time.monotonic() - self._looked > _REFRESH:
                self._elsewhere, self._looked = self._spent(), time.monotonic()
            requests, paid = self._elsewhere[0] + self.requests, self._elsewhere[1] + self.usd
            if self.calls.max_requests is not None and requests >= self.calls.max_requests:
                raise _exhausted("max_requests", self.calls.max_requests, f"{requests} requests were made")
            if self.calls.max_usd is not None and paid + usd > self.calls.max_usd:
                raise _exhausted("max_usd", self.calls.max_usd, f"{paid:.4f} USD are spent or under way")
            self.requests, self.usd = self.requests + 1, self.usd + usd

    def settle(self, reserved: float, usd: float) -> None:
        """Puts what a request cost in the place of what it had reserved."""
        with self._lock:
            self.usd += usd - reserved


def _exhausted(key: str, limit: float, seen: str) -> InputError:
    return InputError(
        f"evaluation.judging.{key} = {limit:g} is reached: {seen}; all answers are kept, raise it to go on"
    )
