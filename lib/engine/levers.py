"""The switches, each of them on its own, as one value."""

from dataclasses import asdict, dataclass
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
    cudnn_benchmark: bool = False  # cuDNN times its algorithms once per shape and takes the fastest; nothing on a CPU
    compile: bool = False  # torch.compile of the networks that the attack sees
    cuda_graph: bool = False  # the attack recorded once and replayed, the last batch padded
    leave: bool = False  # images that are finished leave the batch; not beside `compile`, which wants one size
    fused: bool = False  # the optimiser's step as one kernel
    in_backward: bool = False  # weights are stepped as their gradients come, which are then freed: for memory

    @property
    def optimizer(self) -> dict[str, Any]:
        """Keywords for torch's optimiser."""
        return {"fused": True} if self.fused else {}

    def __str__(self) -> str:
        return " + ".join(name for name, on in asdict(self).items() if on) or "plain"


PLAIN = Levers()
STANDARD = Levers(folding=True, leave=True)
"""What a run uses unless it is told otherwise; its networks are built channels-last."""
LEVERS: dict[str, Levers | None] = {"plain": PLAIN, "standard": STANDARD, "calibrated": None}
"""What a scale's setting `levers` may say; None is for what a calibration finds on the machine at hand."""
