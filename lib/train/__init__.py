"""Training: a schedule, what stands around a method, and the loop; neither disk nor screen.

Training(student, None, METHODS["pgd_at"], attack, data.train, Schedule(epochs=10), score).run()
"""

from lib.attacks.fast import PRECISIONS, in_precision
from lib.models.modes import mode
from lib.train.extras import TrainingExtras
from lib.train.loop import Attack, Training
from lib.train.schedule import Schedule

__all__ = ["PRECISIONS", "Attack", "Schedule", "Training", "TrainingExtras", "in_precision", "mode"]
