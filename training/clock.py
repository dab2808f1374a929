"""When a stage must stop: its own minutes, the end of this call, or a signal."""

import math
import signal
import threading
import time


class Signals:
    """Whether the process was asked to end. SIGTERM and SIGINT only set the flag: the loop saves, then stops."""

    asked = False

    @classmethod
    def watch(cls) -> None:
        """Install the handlers; outside the main thread there is nothing to install."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, cls._note)

    @classmethod
    def _note(cls, number, frame) -> None:
        cls.asked = True


class Clock:
    """The time of one stage over one or several calls, in seconds, from the moment this object is made.

    `minutes` counts everything: loading, compiling, training and the last save, for which `reserve` seconds
    (at most a fifth of it) are kept back. `used` is what earlier calls took, `until` the Unix time at which
    this call has to be over. With `steps` the stage is that many steps long instead, so that two runs can be
    compared.
    """

    def __init__(
        self, minutes: float, steps: int = 0, used: float = 0.0, until: float = math.inf, reserve: float = 8.0
    ):
        self.total = minutes * 60 - min(reserve, minutes * 12)
        self.steps, self.used, self.until = steps, used, until - reserve
        self.start = time.time()

    @property
    def seconds(self) -> float:
        """Time used so far, earlier calls included."""
        return self.used + time.time() - self.start

    def progress(self, step: int) -> float:
        """0 at the start, 1 when the stage is complete; learning rates and curricula follow it."""
        return min(1.0, step / self.steps if self.steps else self.seconds / self.total)

    def stop(self, step: int) -> bool:
        """Whether to stop now, complete or not."""
        return self.progress(step) >= 1 or self.stop_call()

    def stop_call(self) -> bool:
        """Whether this call has to end: its time is up or a signal came."""
        return Signals.asked or time.time() >= self.until
