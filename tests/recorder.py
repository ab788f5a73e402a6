"""A CUDA graph for tests on a CPU: it repeats operations on the memory that they were recorded on."""

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only


class Recorder:
    """Counts recordings and replays; a replay knows addresses and no names, and the host may not be asked."""

    def __init__(self):
        self.records = self.replays = 0

    def __call__(self, work):
        self.records += 1
        with Operations() as recorded:
            result = work()

        def replay():
            self.replays += 1
            recorded.repeat()

        return replay, result


class Operations(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.done = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("operation not permitted when stream is capturing")
        given = tree_map_only(Tensor, torch.Tensor.detach, (args, kwargs or {}))  # the same memory, whatever comes
        made = func(*args, **(kwargs or {}))
        self.done.append((func, given, tree_map_only(Tensor, torch.Tensor.detach, made)))
        return made

    @torch.no_grad()
    def repeat(self):
        for func, (args, kwargs), made in self.done:
            for own, new in zip(tree_leaves(made), tree_leaves(func(*args, **kwargs)), strict=True):
                if isinstance(own, Tensor) and own.untyped_storage().data_ptr() != new.untyped_storage().data_ptr():
                    own.copy_(new)
