"""Training: a schedule, the loop, and what may be composed with a method; neither disk nor screen.

build_training(student, None, METHODS["pgd_at"], attack, data.train, Schedule(epochs=10), score).run()
"""

from lib.attacks.fast import PRECISIONS
from lib.train.extended import ExtendedTraining, TrainingExtras, build_training
from lib.train.loop import Training
from lib.train.schedule import Schedule
