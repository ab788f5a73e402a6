"""The switches, each of them on its own, as one value."""

from dataclasses import asdict, dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Levers:
    """What is done to make an attack and a training step cheaper; all of it off is the plain path.

    Results stay equal to float rounding under every switch but `bf16`: x' is then made in bf16, with the last layer,
    the logits and the loss in fp32, and judged by the network itself.
    """

    folding: bool = False  # convolution and batch-norm as one, where the network is in eval mode
    channels_last: bool = False  # networks laid out NHWC; False: NCHW
    bf16: bool = False  # the attack in bf16, whatever the training's precision; its convolutions are folded as well
    compile: bool = False  # torch.compile of the networks that the attack sees
    cuda_graph: bool = False  # the attack recorded once and replayed, the last batch padded
    leave: bool = False  # images that are finished leave the batch; not beside `compile`, which wants one size
    fused: bool = False  # the optimiser's step as one kernel
    in_backward: bool = False  # weights are stepped as their gradients come, which are then freed: for memory

    @property
    def optimizer(self) -> dict[str, Any]:
        """Keywords for torch's optimiser."""
        return {"fused": True} if self.fused else {}

    @property
    def for_equal_steps(self) -> "Levers":
        """Those that act on an attack in which all images take the same steps: nobody leaves."""
        return replace(self, leave=False)

    @property
    def for_own_steps(self) -> "Levers":
        """Those that act on an attack in which images stop at their own time: no two batches have the same shape."""
        return replace(self, compile=False, cuda_graph=False)

    def __str__(self) -> str:
        return " + ".join(name for name, on in asdict(self).items() if on) or "plain"


PLAIN = Levers()
STANDARD = Levers(folding=True, channels_last=True, leave=True)
"""What a run uses unless it is told otherwise."""
LEVERS: dict[str, Levers | None] = {"plain": PLAIN, "standard": STANDARD, "calibrated": None}
"""What a scale's setting `levers` may say; None is for what a calibration finds on the machine at hand."""
