"""Names of the precisions and of the ways to run an attack."""

from lib.attacks.engine import PRECISIONS as PRECISIONS

EXECUTIONS = ("fast", "plain")
