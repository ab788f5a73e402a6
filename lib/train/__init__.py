"""Training: a schedule, what stands around a method, and the loop; neither disk nor screen.

Training(student, None, METHODS["pgd_at"], attack, data.train, Schedule(epochs=10), score).run()
"""

from lib.engine import PRECISIONS, in_precision
from lib.train.around import Around
from lib.train.core import Attack, Training
from lib.train.mode import mode
from lib.train.schedule import Schedule

__all__ = ["PRECISIONS", "Around", "Attack", "Schedule", "Training", "in_precision", "mode"]
