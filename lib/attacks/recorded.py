"""A whole attack recorded once as a CUDA graph on static buffers and replayed: one launch instead of thousands."""

from collections.abc import Callable

import torch
from torch import Tensor

WARM_UPS = 2  # calls on a side stream before the recording, in which libraries choose their kernels

Replay = Callable[[], object]
Recorder = Callable[[Callable[[], Tensor]], tuple[Replay, Tensor]]
"""Records one call of its argument: (what repeats the call, the tensor that every repetition writes)."""


class Captured:
    """function(*tensors) -> (N, ...), image by image, as a recording for one batch size.

    A smaller batch is padded with copies of its last image, whose results are cut off; shapes beyond the first
    dimension are fixed. `function` may neither read a value on the host nor draw random numbers.
    """

    def __init__(self, function: Callable[..., Tensor], inputs: tuple[Tensor, ...], record: Recorder) -> None:
        self.function = function  # keeps alive what the recording reads by address
        self.buffers = tuple(tensor.clone() for tensor in inputs)
        with torch.cuda.device_of(self.buffers[0]):  # streams and graphs are made on the current device
            self.replay, self.result = record(lambda: function(*self.buffers))

    def __call__(self, *inputs: Tensor) -> Tensor:
        count = len(inputs[0])
        for buffer, tensor in zip(self.buffers, inputs, strict=True):
            buffer[:count].copy_(tensor)
            buffer[count:] = tensor[-1:]
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
