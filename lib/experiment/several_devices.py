"""One run on several devices: what `torchrun` starts in each of its processes.

torchrun --nproc-per-node 4 -m lib.experiment.everything fig5_d2r --scale paper --settings '{batch_norm: synchronised}'

The first rank plans, prints, keeps and measures as one process does. The others wait, and take their part of every
training that it announces. Where one ends, torchrun ends all, and the same call goes on from the last epoch.
"""

import os
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from lib.errors import UserError
from lib.experiment import runs
from lib.experiment.parameters import device_of
from lib.experiment.planning import jobs_of
from lib.experiment.spec import RunSpec
from lib.experiment.table import Table
from lib.train.devices import agree, announce, rank, size, weights_agree

PATIENCE = timedelta(days=100)  # how long ranks wait for the first, which measures


def join(given: dict[str, Any]) -> dict[str, Any]:
    """The arguments as they are; under torchrun this process joins the others, with one worker on its own device."""
    if not dist.is_available() or not dist.is_torchelastic_launched():
        return given
    if given["workers"] > 1:
        raise UserError("several devices make one run after the other: leave workers out")
    device = torch.device("cpu")
    if device_of(given["device"]).type == "cuda":
        device = device_of(f"cuda:{os.environ['LOCAL_RANK']}")
        torch.cuda.set_device(device)
    dist.init_process_group("gloo" if device.type == "cpu" else "cpu:gloo,cuda:nccl", timeout=PATIENCE)
    if device.type == "cuda":  # a GPU with another number of processors draws other numbers
        count = torch.cuda.get_device_properties(device).multi_processor_count
        agree(torch.tensor([count], device=device), "GPUs")
    if rank():
        announce()  # the first has opened the tables, and downloaded what they want
    return given | {"device": str(device), "workers": 1}


def assist(tables: list[Table]) -> bool:
    """Whether this is a rank but the first, after it took part in all trainings that the first announced."""
    if size() > 1 and tables[0].scale.parallel is None:
        raise UserError("several devices want settings that say whose batch statistics: {batch_norm: synchronised}")
    if rank() == 0:
        announce()
        return False
    networks = {job.run: job.network for job in jobs_of(*tables)}
    while digest := announce():
        spec = networks[digest]
        assert isinstance(spec, RunSpec)
        training, _ = runs.begin(spec, tables[0].workspace)
        training.run(lambda training: weights_agree(training.kept))
    return True
