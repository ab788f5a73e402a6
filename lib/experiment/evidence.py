"""Make the evidence of params/evidence.yaml, run by run in its order, and keep it: `make evidence`."""

import argparse
import os
from collections.abc import Iterator
from typing import Any

import pandas as pd

from lib.errors import UserError, check_type
from lib.experiment import cost, kept
from lib.experiment.parameters import PARAMS, Parameters, read_yaml
from lib.experiment.planning import Plan, plan
from lib.experiment.progress import clock, display
from lib.experiment.table import open_table


def plans(given: argparse.Namespace) -> Iterator[Plan]:
    """The plan of every entry of params/evidence.yaml, in order."""
    settings: dict[str, Any] = {"datasets": {"CIFAR10": given.data}} if given.data else {}
    for entry in read_yaml(PARAMS / "evidence.yaml")["runs"]:
        check_type(entry, dict[str, Any], "an entry of evidence.yaml")
        chosen = {key: entry[key] for key in ("rows", "students", "teachers", "seeds") if key in entry}
        where = {"data_dir": given.data_dir, "outputs": given.outputs, "device": given.device, "workers": 1}
        yield plan(open_table(entry["table"], Parameters(scale=given.scale, settings=settings, **where, **chosen)))


def show(given: argparse.Namespace) -> None:
    """Print what is there and what is missing, with the core-hours that it takes here."""
    records, trained = [], set[str]()
    for planned in plans(given):
        expected = dict(zip(planned.todo, planned.frame["seconds"], strict=True))
        workspace, seeds = planned.table.workspace, planned.table.parameters.seeds
        for job in planned.jobs:  # what their sanity checks take is little
            seconds = expected.get(job, 0.0)
            if job in expected and job.digest in trained:  # another entry trains it; these columns are left
                seconds = float(cost.evaluation(job.network.model, job.data, workspace, job.columns)["seconds"])
            trained.add(job.digest)
            label = job.label + (f", seed {seeds[0]}" if seeds != [0] else "")
            record = {"network": label, "table": planned.table.name, "state": job.state(workspace)}
            records.append(record | {"core-hours": seconds / 3600, "digest": job.digest})
    frame = pd.DataFrame(records).drop_duplicates(["digest", "table"]).drop(columns="digest")
    print(frame.to_string(index=False, float_format="{:.2f}".format))
    print(f"missing: {frame['core-hours'].sum():.1f} core-hours on this machine")


def make(given: argparse.Namespace) -> None:
    """Make and keep what is missing; an interrupted run goes on from its last epoch or its last attack."""
    os.nice(19)
    for planned in plans(given):
        table, missing = planned.table, dict(zip(planned.todo, planned.frame["seconds"], strict=True))
        for job in dict.fromkeys((*planned.todo, *planned.jobs)):
            if job in missing:
                print(f"{job.label} ({table.name}): about {clock(missing[job])}", flush=True)
                print(job.do(table.workspace, display(job.label)), flush=True)
            kept.keep(job, table)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="make evidence", description=__doc__)
    parser.add_argument("-n", dest="only_show", action="store_true", help="only print what is there")
    parser.add_argument("--data", default="", help="what stands for CIFAR10: cifar10 or cifar10_jpeg")
    parser.add_argument("--data-dir", default="data")
    parser.add_argument("--scale", default="small")
    parser.add_argument("--outputs", default="outputs")
    parser.add_argument("--device", default="auto")
    given = parser.parse_args()
    try:
        show(given) if given.only_show else make(given)
    except UserError as error:
        parser.exit(1, f"{error}\n")


if __name__ == "__main__":
    main()
