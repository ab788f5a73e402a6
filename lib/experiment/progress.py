"""Progress that reads well in a terminal, in JupyterLab, in a saved notebook and in papermill's log."""

import sys
import time
from collections.abc import Callable

from tqdm import tqdm

LINES = 20  # at most so many in a log, however many runs there are
BAR = "{percentage:3.0f} % {bar} {remaining} left {postfix}"


class Progress:
    """How much of the work is done, how many of `total` runs, what was finished last, and how long the rest may take.

    In a terminal it is a tqdm bar; elsewhere it is a few printed lines, which stay readable wherever output is kept.
    """

    def __init__(self, total: int) -> None:
        self.total, self.begun, self.printed = total, time.monotonic(), 0
        self.bar = tqdm(total=100, bar_format=BAR, mininterval=1) if sys.stderr.isatty() else None

    def show(self, share: float, done: int, message: str) -> None:
        """Set the state: the share of the work in [0, 1], the runs that are done, what to say."""
        runs = f"{done}/{self.total} runs · {message}"
        if self.bar is not None:
            self.bar.set_postfix_str(runs, refresh=False)
            self.bar.update(round(100 * share, 1) - self.bar.n)
        elif (due := int(LINES * share + 1e-9)) > self.printed:
            self.printed = due
            elapsed = time.monotonic() - self.begun
            left = f"{clock(elapsed * (1 - share) / share)} left" if done else "begun"  # until one is done: a guess
            time_left = left if share < 1 else f"took {clock(elapsed)}"
            print(f"{'█' * due}{'░' * (LINES - due)} {time_left} · {runs}", flush=True)

    def close(self) -> None:
        """No more updates."""
        if self.bar is not None:
            self.bar.close()


def shown(message: str) -> Callable[[float], None]:
    """What shows the share of one piece of work, as a function to be told it."""
    progress = Progress(1)
    return lambda share: progress.show(share, int(share >= 1), message)


def clock(seconds: float) -> str:
    """75 -> "1 min 15 s"; 7300 -> "2 h 02 min"."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60:,} h {minutes % 60:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
