"""Every table and figure of the four papers as one graph of jobs, in which each run is made once: `make all`."""

import argparse
from collections import Counter
from dataclasses import replace
from functools import cache
from typing import Any

import yaml

from lib.errors import UserError, check_type
from lib.experiment.jobs import Check, Job
from lib.experiment.networks import fresh_network
from lib.experiment.parameters import PARAMS, Loader, Parameters
from lib.experiment.planning import Plan, jobs_of, make, plan
from lib.experiment.progress import clock
from lib.experiment.several_devices import assist, join
from lib.experiment.spec import RunSpec
from lib.experiment.table import Table, open_table
from lib.experiment.table_file import read_table
from lib.train.devices import announce


def longest_first(planned: Plan) -> Plan:
    """The plan with the longest chain of jobs first: what others wait for comes before them."""
    seconds = dict(zip(planned.todo, planned.frame["seconds"], strict=True))
    waits_for = {job: job.waits_for for job in seconds}

    @cache
    def chain(job: Job) -> float:  # to the end of the last job that waits for it
        return seconds[job] + max((chain(other) for other in seconds if job.digest in waits_for[other]), default=0.0)

    order = sorted(range(len(seconds)), key=lambda at: chain(planned.todo[at]), reverse=True)
    frame = planned.frame.iloc[order].reset_index(drop=True)
    return replace(planned, todo=tuple(planned.todo[at] for at in order), frame=frame)


def storage(planned: Plan) -> int:
    """The bytes of the weights of all its runs: best, last and a guide's."""
    trained = {job.network for job in planned.jobs if isinstance(job.network, RunSpec)}
    nets = Counter((name, run.data) for run in trained for name in (run.model, run.model, run.guide) if name)
    made = ((fresh_network(*net, planned.table.workspace), count) for net, count in nets.items())
    return sum(count * weights.nbytes for net, count in made for weights in net.state_dict().values())


def show(planned: Plan, tables: list[Table]) -> None:
    """Print what will run, in its order and with how many tables ask for it, and what all of it takes."""
    workspace = planned.table.workspace
    uses = Counter(run for table in tables for run in {job.run for job in jobs_of(table)})
    lines = planned.frame.assign(tables=[uses[job.run] for job in planned.todo])
    lines = lines.loc[[not isinstance(job, Check) for job in planned.todo]]
    if len(lines):
        lines = lines.assign(seconds=lines["seconds"].map(clock)).rename(columns={"seconds": "about"})
        print(lines.to_string(index=False, float_format="{:.2f}".format))
    shared, size = sum(count > 1 for count in uses.values()), storage(planned) / 1e9
    print(f"{len(tables)} tables and figures ask for {uses.total()} runs: {len(uses)}, of which {shared} are shared.")
    print(f"Their weights take {size:,.2f} GB in {workspace.outputs}.")
    hours, unit = planned.frame["seconds"].sum() / 3600, "core" if workspace.device == "cpu" else "GPU"
    print(f"{planned} Measured here, what is missing takes {hours:,.1f} {unit}-hours.", flush=True)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="make all", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="TABLE", help="which of params/tables; none: all of the papers'")
    parser.add_argument("-n", dest="only_show", action="store_true", help="only print the plan")
    parser.add_argument("--settings", default="{}", help="any setting of params/<scale>.yaml, to replace it, as YAML")
    for name, default in vars(Parameters()).items():
        if type(default) in (str, int, float):  # lists, mappings and flags are no options
            parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    given = vars(parser.parse_args())
    names, only_show = given.pop("names"), given.pop("only_show")
    try:
        every = sorted(path.stem for path in (PARAMS / "tables").glob("*.yaml"))
        names = names or [name for name in every if read_table(name).item]
        given = join(given | {"settings": yaml.load(given["settings"], Loader)})
        check_type(given["settings"], dict[str, Any], "settings")
        tables = [open_table(name, Parameters(**given)) for name in names]
        if assist(tables):  # it is one of several processes, and not the one that does the rest
            return
        planned = longest_first(plan(*tables))
        show(planned, tables)
        if not only_show:
            make(planned)
        announce()
    except (UserError, yaml.YAMLError) as error:
        parser.exit(1, f"{error}\n")


if __name__ == "__main__":
    main()
