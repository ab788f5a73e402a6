"""Stand-in over lib/attacks/engine.py for the engine that the attacks room brings: two executions, three precisions."""

from dataclasses import replace

from torch import Tensor, nn

from lib.attacks.engine import PRECISIONS, Net, in_precision
from lib.attacks.engine import Engine as Levered
from lib.attacks.levers import PLAIN, STANDARD
from lib.errors import choose

__all__ = ["EXECUTIONS", "PRECISIONS", "Engine", "in_precision"]

EXECUTIONS = ("fast", "plain")


class Engine(Levered):
    """`execution` fast: folded, channels-last, finished images leave the batch; plain: none of it."""

    def __init__(self, execution: str = "fast", precision: str = "fp32") -> None:
        choose("precision", precision, dict.fromkeys(PRECISIONS))
        levers = choose("execution", execution, {"fast": STANDARD, "plain": PLAIN})
        super().__init__(replace(levers, bf16=precision != "fp32"), "bf16" if precision == "bf16" else "fp32")
        self.execution = execution

    @property
    def reasons(self) -> dict[str, str]:
        """What could not be had, and why."""
        return self.said

    def lay_out(self, net: nn.Module) -> nn.Module:
        """`net` in the memory format of the execution."""
        return self.laid_out(net)

    def attack_view(self, net: nn.Module, x: Tensor) -> Net:
        """`net` as an attack sees it."""
        return self.seen(net, x)

    def describe(self) -> str:
        """The execution."""
        return self.execution
