"""Progress that reads well in a terminal, in JupyterLab, in a saved notebook and in papermill's log."""

import sys
import time

from tqdm import tqdm

LINES = 20  # at most so many in a log, however many jobs there are


class Progress:
    """How many of `total` jobs are done, what was finished last, and how long the rest may take.

    In a terminal it is a tqdm bar; elsewhere it is a few printed lines, which stay readable wherever output is kept.
    """

    def __init__(self, total: int, unit: str = "runs") -> None:
        self.total, self.unit = total, unit
        self.begun, self.printed = time.monotonic(), 0
        self.bar = tqdm(total=total, unit=unit, mininterval=1) if sys.stderr.isatty() else None

    def show(self, done: float, message: str) -> None:
        """Set the state; `done` may be fractional."""
        if self.bar is not None:
            self.bar.set_postfix_str(message, refresh=False)
            self.bar.update(round(done, 2) - self.bar.n)
        elif (due := int(LINES * done / self.total)) > self.printed:
            self.printed = due
            print(self.line(done, message), flush=True)

    def line(self, done: float, message: str) -> str:
        """One printed line."""
        share, elapsed = done / self.total, time.monotonic() - self.begun
        tail = f"{clock(elapsed * (1 - share) / share)} left" if share < 1 else f"took {clock(elapsed)}"
        filled = round(20 * share)
        return f"{'█' * filled}{'░' * (20 - filled)} {int(done):>3}/{self.total} {self.unit} · {tail} · {message}"

    def close(self) -> None:
        """No more updates."""
        if self.bar is not None:
            self.bar.close()


def clock(seconds: float) -> str:
    """75 -> "1 min 15 s"; 7300 -> "2 h 02 min"."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60:,} h {minutes % 60:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
