"""A method is a row: what the attack maximises, what training minimises, and the recipe that goes with them.

Every file of this folder may have rows of its own in a dict METHODS; here they become one. Losses return named
per-image terms {name: (N,)}; the loop adds them up and takes the mean, once. Forwards stand on top, in the order the
recipe wants, because each moves the student's batch-norm statistics. S is the student, T the frozen teacher, G the
guide that is trained beside the student (then called the target), x' the adversarial image, KL(T || S) the divergence
from the teacher's distribution. `*_as_released` is the authors' public code where it computes something else than the
paper's formula; `params/choices/` lists what was chosen where neither decides.
"""

from importlib import import_module
from pkgutil import iter_modules

from lib.methods.at import ce_label, kl_clean
from lib.methods.core import Method, Net, Nets, NominalBatch, Piecewise, Ramp, Weight, weight_at
from lib.methods.d2r import d2r, d2r_as_released, d2r_one_sided, kl_guide, kl_guide_as_printed, of_batch
from lib.methods.dgad import dgad, dgad_parts
from lib.methods.distillation import kl_student_teacher, kl_teacher, kl_teacher_student
from lib.methods.dynat import dynat, dynat_smoothed, guides_answer
from lib.methods.reweighting import gair, mail

METHODS: dict[str, Method] = {}
for _module in iter_modules(__path__):
    for _name, _method in getattr(import_module(f"{__name__}.{_module.name}"), "METHODS", {}).items():
        if METHODS.setdefault(_name, _method) is not _method:
            raise ValueError(f"two files of lib/methods have a method {_name!r}")
