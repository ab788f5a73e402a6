"""AutoAttack standard (Croce & Hein 2020) over a whole set: image by image what the authors' code finds, and faster."""

from lib.autoattack.driver import STAGES, Found, standard

__all__ = ["STAGES", "Found", "standard"]
