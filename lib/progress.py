"""A progress line that reads well in a terminal, in JupyterLab and in a saved notebook."""

import sys
import time
from typing import Any

from tqdm import tqdm


class Progress:
    """`total` jobs, how many are done, what was finished last, and how long the rest may take.

    In a notebook one line of output is rewritten in place, and the saved copy keeps its last state; in a terminal it is
    a tqdm bar. `estimates` (seconds per job) weigh the jobs; without them all weigh the same.
    """

    def __init__(self, total: float, unit: str = "runs") -> None:
        self.total, self.unit, self.begun = total, unit, time.monotonic()
        self.handle: Any = _notebook_handle()
        self.bar = None if self.handle else tqdm(total=total, unit=unit, file=sys.stderr, mininterval=1, leave=True)

    def show(self, done: float, message: str) -> None:
        """Set the state; `done` may be fractional."""
        if self.bar is not None:
            self.bar.set_postfix_str(message, refresh=False)
            self.bar.update(done - self.bar.n)
            return
        share = done / self.total if self.total else 1.0
        elapsed = time.monotonic() - self.begun
        left = elapsed * (1 - share) / share if share else 0.0
        filled = "█" * round(24 * share) + "░" * (24 - round(24 * share))
        tail = f"{clock(left)} left" if 0 < share < 1 else f"took {clock(elapsed)}"
        text = f"{filled} {done:.3g}/{self.total:.3g} {self.unit} · {tail} · {message}"
        self.handle.update({"text/plain": text}, raw=True)

    def close(self) -> None:
        """No more updates."""
        if self.bar is not None:
            self.bar.close()


def clock(seconds: float) -> str:
    """75 -> "1 min 15 s"; 7300 -> "2 h 02 min"."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def _notebook_handle() -> Any:
    """A display that can be rewritten, inside a Jupyter kernel; None elsewhere."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    if shell is None or not hasattr(shell, "kernel"):
        return None
    from IPython.display import display

    return display({"text/plain": "starting"}, raw=True, display_id=True)
