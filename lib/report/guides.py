"""A target and its guide, epoch by epoch, and on one image."""

import json
from collections.abc import Mapping
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor


def followed(histories: Mapping[str, Path]) -> pd.DataFrame:
    """Runs of a target with a guide, epoch by epoch, from history.json: accuracies in %, one line per run and epoch.

    `label right` is how often the guide's answer, which is DYNAT's label, was the true class in the epoch's batches;
    unseen images are those the epoch is picked on, and PGD-20 is on at most a thousand of them.
    """
    records = []
    for name, path in histories.items():
        for row in json.loads(path.read_text()):
            told = row.get("followed", {"target": {}, "guide": {}, "label": None})
            line = {"run": name, "epoch": row["epoch"], "target under PGD-10": row["score"]}
            line["target under PGD-20"] = told["target"].get("PGD-20")
            for net, part in ((n, p) for n in ("target", "guide") for p in ("train", "unseen")):
                line[f"{net}, {part} images"] = told[net].get(part)
            records.append(line | {"label right": told["label"]})
    return pd.DataFrame(records)


def rescued(answers: Mapping[str, Tensor], y: Tensor, k: int = 3) -> tuple[list[int], pd.DataFrame]:
    """How often the first two of three networks are right and the third is wrong, beside all other cases; and where.

    `answers` are name -> logits (N, C), y (N,) the true classes. The images are the k of that kind, or of all where
    there is none, that the second network believes most strongly over the third.
    """
    right = {name: logits.argmax(1) == y for name, logits in answers.items()}
    _, with_, without = (logits.softmax(1).gather(1, y[:, None]).squeeze(1) for logits in answers.values())
    first, second, third = right.values()
    wanted = first & second & ~third
    gap = with_ - without
    if wanted.any():
        gap = gap.masked_fill(~wanted, -torch.inf)
    count = min(k, int(wanted.sum()) or 1)
    counts = pd.DataFrame({name: flags.tolist() for name, flags in right.items()}).value_counts()
    return gap.topk(count).indices.tolist(), counts.rename("images").reset_index().replace(
        {True: "right", False: "wrong"}
    )
