"""Stand-in for the engine of the attacks room: its interface over today's levers. To be dropped."""

from dataclasses import replace

from torch import Tensor, nn

from lib.attacks.engine import PRECISIONS as PRECISIONS
from lib.attacks.engine import Engine as Old
from lib.attacks.engine import Net
from lib.attacks.engine import in_precision as in_precision
from lib.attacks.levers import PLAIN, STANDARD
from lib.attacks.recorded import Recorder

EXECUTIONS = ("fast", "plain")


class Engine(Old):
    """The contract's arguments over the levers."""

    def __init__(self, execution: str = "fast", precision: str = "fp32", record: Recorder | None = None) -> None:
        levers = replace(STANDARD if execution == "fast" else PLAIN, bf16=precision != "fp32")
        super().__init__(levers, "bf16" if precision == "bf16" else "fp32", record)
        self.execution, self.reasons = execution, self.said

    def lay_out(self, net: nn.Module) -> nn.Module:
        """`net` in the memory format of the execution."""
        return self.laid_out(net)

    def attack_view(self, net: nn.Module, x: Tensor) -> Net:
        """`net` as an attack sees it."""
        return self.seen(net, x)

    def describe(self) -> str:
        """The execution."""
        return self.execution
