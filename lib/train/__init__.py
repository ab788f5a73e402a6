"""Training: a schedule, the loop, and what may be composed with a method; neither disk nor screen.

Training(student, None, METHODS["pgd_at"], attack, data.train, Schedule(epochs=10), score).run()
"""

from lib.attacks.fast import EXECUTIONS, PRECISIONS, in_precision
from lib.models.modes import mode
from lib.train.extended import ExtendedTraining
from lib.train.extras import TrainingExtras
from lib.train.loop import Attack, Training
from lib.train.schedule import Schedule
