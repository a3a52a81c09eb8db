"""How much a whole gateway takes per second: opens and messages (spec section 12.1). No clock: ``now`` is passed in, in monotonic seconds."""

from __future__ import annotations


class Bucket:
    """A token bucket: ``rate`` per second, and ``burst`` at once, which is the first rate. It starts full. A rate of 0 allows everything."""

    __slots__ = ("_at", "_burst", "_tokens", "rate")

    def __init__(self, rate: int) -> None:
        self.rate = rate
        self._burst = self._tokens = float(rate)
        self._at = float("-inf")

    def take(self, now: float) -> bool:
        """Whether one more is within the limit; then it is counted."""
        if not self.rate:
            return True
        tokens = min(self._burst, self._tokens + (now - self._at) * self.rate)
        self._at = now
        allowed = tokens >= 1
        self._tokens = tokens - 1 if allowed else tokens
        return allowed


class Limits:
    """The two limits of a gateway. What exceeds ``on_open`` is refused with 1013, what exceeds ``on_message`` is dropped."""

    __slots__ = ("on_message", "on_open")

    def __init__(self, on_open: int = 0, on_message: int = 0) -> None:
        self.on_open = Bucket(on_open)
        self.on_message = Bucket(on_message)

    def change(self, on_open: int, on_message: int) -> None:
        """New rates at run time (spec section 8.3): only positive ones, only for a limit that is not off; the bursts stay."""
        for bucket, rate in ((self.on_open, on_open), (self.on_message, on_message)):
            if bucket.rate and rate > 0:
                bucket.rate = rate
