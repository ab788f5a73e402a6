"""The switches, each of them on its own, as one value."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Levers:
    """What is done to make an attack and a training step cheaper; all of it off is the plain path.

    Results stay equal to float rounding under every switch but `bf16`: x' is then made in bf16, with the last layer,
    the logits and the loss in fp32, and judged by the network itself.
    """

    folding: bool = False  # convolution and batch-norm as one, where the network is in eval mode
    channels_last: bool = False  # networks laid out NHWC; False: as they were given
    bf16: bool = False  # the attack in bf16, whatever the training's precision; its convolutions are folded as well
    compile: bool = False  # torch.compile of the networks that the attack sees
    cuda_graph: bool = False  # the attack recorded once and replayed, the last batch padded
    leave: bool = False  # images that are finished leave the batch; not beside `compile`, which wants one size
    fused: bool = False  # the optimiser's step as one kernel
    in_backward: bool = False  # a weight is stepped as soon as its gradient is there, which is then freed: for memory

    @property
    def optimizer(self) -> dict[str, Any]:
        """Keywords for torch's optimiser."""
        return {"fused": True} if self.fused else {}


PLAIN = Levers()
STANDARD = Levers(folding=True, leave=True)
"""What a run uses unless it is told otherwise; its networks are built channels-last."""
