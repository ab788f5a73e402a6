"""Progress that reads well in a terminal, in JupyterLab, in a saved notebook and in papermill's log."""

import sys
import time
from collections.abc import Callable, Hashable, Mapping

from tqdm import tqdm

LINES = 10  # at most so many in a log, however many jobs there are
BAR = "{percentage:3.0f} % {bar} {remaining} left {postfix}"


class Progress:
    """The share of the expected seconds that is done, so that a job of hours counts for more than one of minutes.

    In a terminal it is a tqdm bar; elsewhere it is a few printed lines, which stay readable wherever output is kept.
    """

    def __init__(self, seconds: Mapping[Hashable, float]) -> None:
        self.seconds, self.finished, self.message = seconds, set[Hashable](), "starting"
        self.begun, self.printed = time.monotonic(), 0
        self.bar = tqdm(total=100, bar_format=BAR, mininterval=1) if sys.stderr.isatty() else None

    def finish(self, job: Hashable, message: str) -> None:
        """One job is done; `message` is its result."""
        self.message = message
        self.finished.add(job)
        self.show({})

    def show(self, shares: Mapping[Hashable, float]) -> None:
        """Display the state, with the shares in [0, 1] of the jobs that are running."""
        done = sum(self.seconds[job] for job in self.finished)
        done += sum(0.9 * self.seconds[job] * share for job, share in shares.items())  # measuring comes after training
        total = sum(self.seconds.values())
        share = done / total if total else 1.0
        text = f"{len(self.finished)}/{len(self.seconds)} runs · {self.message}"
        if self.bar is not None:
            self.bar.set_postfix_str(text, refresh=False)
            self.bar.update(round(100 * share, 1) - self.bar.n)
        elif (due := int(LINES * share + 1e-9)) > self.printed:
            self.printed, elapsed = due, time.monotonic() - self.begun
            left = f"{clock(elapsed * (1 - share) / share)} left" if self.finished else "begun"
            left = left if share < 1 else f"took {clock(elapsed)}"
            print(f"{100 * share:3.0f} % · {left} · {text}", flush=True)

    def show_one(self, job: Hashable, share: float) -> None:
        """The same with one running job."""
        self.show({job: share})

    def close(self) -> None:
        """No more updates."""
        if self.bar is not None:
            self.bar.close()


def display(message: str) -> Callable[[float], None]:
    """A function that displays the share of one piece of work when it is called with it."""
    progress = Progress({message: 1.0})
    return lambda share: progress.finish(message, message) if share >= 1 else progress.show({message: share / 0.9})


def clock(seconds: float) -> str:
    """75 -> "1 min 15 s"; 7300 -> "2 h 02 min"."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60:,} h {minutes % 60:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
