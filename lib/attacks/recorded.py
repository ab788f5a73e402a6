"""A whole attack recorded once on static buffers and replayed: one launch instead of thousands.

cannot = None
try:
    run = Captured(function, (x, x_start, y), on_cuda)
except RuntimeError as error:
    cannot = error  # and the plain path is taken
"""

from collections.abc import Callable

import torch
from torch import Tensor

WARM_UPS = 2  # calls on a side stream before the recording, which libraries use to choose their kernels

Replay = Callable[[], object]
Recorder = Callable[[Callable[[], Tensor]], tuple[Replay, Tensor]]
"""Records one call of what it is given: (what repeats it, the tensor that every repetition writes)."""


class Captured:
    """function(*tensors) -> (N, ...), image by image, as a recording for one batch size.

    A smaller batch is padded with copies of its last image, whose results are cut off; shapes beyond the first
    dimension are fixed. `function` may not ask for a number on the host, and draws no random numbers.
    """

    def __init__(self, function: Callable[..., Tensor], inputs: tuple[Tensor, ...], record: Recorder) -> None:
        self.function = function  # the recording reads what it holds, where it lies
        self.buffers = tuple(given.clone() for given in inputs)
        with torch.cuda.device_of(self.buffers[0]):  # streams and graphs are made on the current device
            self.replay, self.result = record(lambda: function(*self.buffers))

    @property
    def size(self) -> int:
        """The batch size that was recorded."""
        return len(self.buffers[0])

    def __call__(self, *inputs: Tensor) -> Tensor:
        count = len(inputs[0])
        for buffer, given in zip(self.buffers, inputs, strict=True):
            buffer[:count].copy_(given)
            buffer[count:] = given[-1:]
        self.replay()
        return self.result[:count].clone()


def on_cuda(work: Callable[[], Tensor]) -> tuple[Replay, Tensor]:
    """The recorder of CUDA graphs.

    Raises:
        RuntimeError: the work does something that a graph cannot hold.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UPS):
            work()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = work()
    return graph.replay, result
