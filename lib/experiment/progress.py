"""Progress that reads well in a terminal, in JupyterLab, in a saved notebook and in papermill's log."""

import sys
import textwrap
import time
from collections.abc import Callable, Sequence

from tqdm import tqdm

LINES = 10  # at most so many in a log, however many jobs there are
WIDTH = 88  # at most so many characters each: a narrow page does not wrap them
BAR = "{percentage:3.0f} % {bar} {remaining} left {postfix}"


class Progress:
    """The share of the jobs' expected seconds that is done: a tqdm bar in a terminal, else a few printed lines."""

    def __init__(self, seconds: Sequence[float]) -> None:
        self.jobs, self.total, self.finished, self.done = len(seconds), sum(seconds), 0, 0.0
        self.begun, self.printed, self.message = time.monotonic(), 0, "starting"
        self.bar = tqdm(total=100, bar_format=BAR, mininterval=1, disable=not sys.stderr.isatty())

    def finish(self, seconds: float, message: str) -> None:
        """A job of so many expected seconds is done; `message` is its result."""
        self.message, self.finished, self.done = message, self.finished + 1, self.done + seconds
        self.show()

    def show(self, seconds: float = 0.0, trained: float = 0.0) -> None:
        """Display the state, with the job of so many seconds that runs, of whose training a share is done."""
        share = (self.done + 0.9 * seconds * trained) / self.total
        text = f"{self.finished}/{self.jobs} runs" + (f" · {self.message}" if self.message else "")
        self.bar.set_postfix_str(text, refresh=False)
        self.bar.update(round(100 * share, 1) - self.bar.n)
        due = int(LINES * share + 1e-9)
        if self.bar.disable and due > self.printed:
            self.printed, elapsed = due, time.monotonic() - self.begun
            left = f"{clock(elapsed * (1 - share) / share)} left" if self.finished else "begun"
            left = left if self.finished < self.jobs else f"took {clock(elapsed)}"
            line = textwrap.shorten(f"{100 * share:.0f} % · {left} · {text}", WIDTH, placeholder=" …")
            print(line, flush=True)
            self.message = ""  # said once


def display(message: str) -> Callable[[float], None]:
    """A function that displays the share of one piece of work when it is called with it."""
    progress = Progress([1.0])
    return lambda share: progress.finish(1.0, message) if share >= 1 else progress.show(1.0, share / 0.9)


def clock(seconds: float) -> str:
    """75 -> "1 min 15 s"; 7300 -> "2 h 02 min"."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60:,} h {minutes % 60:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
