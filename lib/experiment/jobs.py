"""Jobs done here or in several processes, each after the jobs that make the networks it uses, with their progress."""

import json
import multiprocessing
import multiprocessing.process
import shutil
import signal
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from typing import Any

import torch

from lib.attacks.folding import folded
from lib.data import to_float
from lib.errors import UserError, choose
from lib.evaluate import VERSION, Accuracy, AttackSpec, Finding, Resources, evaluate, sanity_checks
from lib.experiment import runs
from lib.experiment.networks import Network, Workspace, network, network_digest, provenance
from lib.experiment.progress import Progress
from lib.experiment.spec import DataSpec, RunSpec, digest_of
from lib.experiment.store import Rows
from lib.files import begin_worker
from lib.models.modes import frozen

UNGUARDED = 'so what it does stands under `if __name__ == "__main__":`, or it takes workers=1'


@dataclass(frozen=True)
class Job:
    """A network to be trained and measured under `columns`, which transfer from `surrogates`."""

    label: str
    network: Network
    data: DataSpec
    columns: tuple[AttackSpec, ...] = ()
    checkpoint: str = "best"
    surrogates: tuple[RunSpec, ...] = ()

    @property
    def run(self) -> str:
        """The digest that everything about its network is kept under."""
        return network_digest(self.network, self.data)

    @property
    def digest(self) -> str:
        """What tells it from jobs about other networks."""
        return self.run

    @property
    def needs(self) -> tuple[Network, ...]:
        """The other networks that it uses: its network's teacher, and the surrogates."""
        teacher = self.network.teacher if isinstance(self.network, RunSpec) else None
        return (*([teacher] if teacher else []), *self.surrogates)

    @property
    def waits_for(self) -> set[str]:
        """The digests of the jobs that have to be done before this one."""
        return {network_digest(net, self.data) for net in self.needs}

    @property
    def data_names(self) -> set[str]:
        """The data sets that it reads."""
        return {self.data.name} | {net.data.name for net in (self.network, *self.needs) if isinstance(net, RunSpec)}

    @property
    def claims(self) -> tuple[str, ...]:
        """What nobody else may be at while it is done."""
        return self.run, f"{self.run}-rows"

    def state(self, workspace: Workspace) -> str:
        """How far it is; "complete" where nothing is left to do."""
        made = not isinstance(self.network, RunSpec) or workspace.store.has(self.run)
        if made and None not in self.stored(workspace):
            return "complete"
        if not isinstance(self.network, RunSpec):
            return "given, to be measured"
        begun = workspace.store.checkpoint(self.run).exists()
        return "trained, to be measured" if made else "begun, goes on" if begun else "to be trained"

    def do(self, workspace: Workspace, notify: Callable[[float], None] = lambda share: None) -> str:
        """Make what is not in the store; returns it in a line."""
        if isinstance(self.network, RunSpec):
            runs.make(self.network, workspace, notify)
        return f"{self.label}: " + ", ".join(f"{row.column.name} {row.percent:.1f}" for row in self.measure(workspace))

    def measure(self, workspace: Workspace) -> list[Accuracy]:
        """The accuracies under its columns, each computed once and kept."""
        if None in self.stored(workspace):
            with workspace.store.claim(f"{self.run}-rows"):
                net = network(self.network, self.data, workspace, self.checkpoint)
                test = workspace.dataset(self.data).test
                rows = zip(self.columns, self.stored(workspace), strict=True)
                missing = {column.what: column for column, row in rows if row is None}.values()  # two names, one attack
                weights = workspace.weights(self.network, self.checkpoint)[:12]
                begun = workspace.store.partial / f"{self.run}-{self.checkpoint}-{weights}-attack"

                def keep(row: Accuracy) -> None:
                    made = row.to_json() | {"provenance": provenance(workspace)}
                    self.write_rows(workspace, self.key(row.column), [made])

                for made_on in dict.fromkeys(column.surrogate for column in missing):
                    run = choose("surrogate", made_on, {"": None, **{run.digest: run for run in self.surrogates}})
                    source = None if run is None else network(run, self.data, workspace)
                    on_it = tuple(column for column in missing if column.surrogate == made_on)
                    evaluate(net, test, on_it, source, Resources(begun, found=keep))
                shutil.rmtree(begun, ignore_errors=True)
        found = [row for row in self.stored(workspace) if row is not None]
        if len(found) < len(self.columns):
            raise UserError(f"accuracies were deleted from {workspace.outputs} while they were made; call again")
        return found

    def stored(self, workspace: Workspace) -> list[Accuracy | None]:
        """What `measure` returns, with None for a column that it would compute.

        Raises UserError for an accuracy that is another column's, or whose count is not the sum of its flags.
        """
        kept = ((column, self.read_rows(workspace, self.key(column))) for column in self.columns)
        return [self._checked(rows[0], column) if rows else None for column, rows in kept]

    def _checked(self, row: dict[str, Any], column: AttackSpec) -> Accuracy:
        key, sound = self.key(column), False
        with suppress(KeyError, TypeError, ValueError, AttributeError):
            made = Accuracy.from_json(row)
            sound = self.key(made.column) == key and (made.k, made.n) == (made.flags.count("1"), len(made.flags))
        if not sound:
            of = f"{column.name} ({self.checkpoint})"
            raise UserError(f"{key}.json among the evaluations is not of {of}: delete that file")
        return replace(made, column=column)

    def key(self, column: AttackSpec) -> str:
        """What the accuracy under a column is kept under."""
        return digest_of([asdict(column.what), self.checkpoint, VERSION])

    def write_rows(self, workspace: Workspace, key: str, rows: Rows) -> None:
        """Keep rows about the network under `key`, with the weights that they are of."""
        of = {"checkpoint": self.checkpoint, "weights": workspace.weights(self.network, self.checkpoint)}
        workspace.store.write_rows(self.run, key, rows, **of)

    def read_rows(self, workspace: Workspace, key: str) -> Rows | None:
        """What is kept under `key`; None where that is nothing, or is of other weights than the network has now."""
        rows = workspace.store.read_rows(self.run, key)
        made_of = [row["of"] for row in rows or () if "of" in row]
        now = {of["checkpoint"]: workspace.weights(self.network, of["checkpoint"]) for of in made_of}
        return None if any(now[of["checkpoint"]] not in ("", of["weights"]) for of in made_of) else rows

    def made_with(self, workspace: Workspace) -> list[dict[str, Any]]:
        """The provenance of the network's training and of its accuracies, as stored when they were made."""
        files = sorted((workspace.store.evaluations / self.run).glob("*.json"))
        made = [row["provenance"] for file in files for row in self.read_rows(workspace, file.stem) or []]
        if isinstance(self.network, RunSpec) and workspace.store.folder(self.run).exists():
            made.append(json.loads((workspace.store.folder(self.run) / "provenance.json").read_text()))
        return made


@dataclass(frozen=True, kw_only=True)
class Check(Job):
    """The sanity checks of a made network on its first images; transfers come from a surrogate, if there is one."""

    images: int
    epsilon: float  # in [0, 1]

    @property
    def digest(self) -> str:
        """What tells it from the job that makes its network."""
        return f"{self.run}-{self._key}"

    @property
    def _key(self) -> str:
        unrelated = self.surrogates[0].digest if self.surrogates else None
        return digest_of(["twelve sanity checks", self.images, self.epsilon, self.checkpoint, unrelated, VERSION])

    @property
    def needs(self) -> tuple[Network, ...]:
        """The surrogate; no teacher, as nothing is trained."""
        return self.surrogates

    @property
    def waits_for(self) -> set[str]:
        """Its network's job as well."""
        return super().waits_for | {self.run}

    @property
    def claims(self) -> tuple[str, ...]:
        """As a job's."""
        return (self.digest,)

    def state(self, workspace: Workspace) -> str:
        """As a job's."""
        return "sanity to be checked" if self.findings(workspace) is None else "complete"

    def findings(self, workspace: Workspace) -> tuple[Finding, ...] | None:
        """The findings as they are kept, or None."""
        rows, names = self.read_rows(workspace, self._key), [f.name for f in fields(Finding)]
        return None if rows is None else tuple(Finding(*(row[name] for name in names)) for row in rows)

    def do(self, workspace: Workspace, notify: Callable[[float], None] = lambda share: None) -> str:
        """Compute and keep the findings unless they are there; returns those that fired in a line."""
        with workspace.store.claim(self.digest):
            findings = self.findings(workspace)
            if findings is None:
                net = network(self.network, self.data, workspace, self.checkpoint)
                other = folded(network(self.surrogates[0], self.data, workspace)) if self.surrogates else None
                part = workspace.dataset(self.data).test.take(slice(0, self.images))
                x, y = to_float(part.images), part.labels
                with frozen(net):
                    findings = tuple(sanity_checks(folded(net), x, y, epsilon=self.epsilon, unrelated=other))
                made = provenance(workspace)
                self.write_rows(workspace, self._key, [asdict(finding) | {"provenance": made} for finding in findings])
        fired = ", ".join(finding.check for finding in findings if finding.fired)
        return f"{self.label}: {fired + ' fired' if fired else 'sound'}"


def run_jobs(seconds: Mapping[Job, float], workspace: Workspace, workers: int) -> None:
    """Do every job, `workers` at once; `seconds` is what each is expected to take and weighs it in the progress."""
    progress = Progress([*seconds.values()])
    with progress.bar:
        if workers == 1 or len(seconds) == 1:
            for job, own in seconds.items():
                progress.finish(own, do(job, workspace, partial(progress.show, own)))
        else:
            _run_in_processes(seconds, workspace, workers, progress)


def do(job: Job, workspace: Workspace, notify: Callable[[float], None] = lambda share: None) -> str:
    """job.do, a lack of memory as a UserError: a smaller batch has other batch statistics, and other random starts."""
    try:
        return job.do(workspace, notify)
    except (RuntimeError, MemoryError) as error:
        lacking = isinstance(error, torch.OutOfMemoryError | MemoryError)
        if not lacking and "can't allocate memory" not in str(error):  # which is a CPU's
            raise
        raise UserError(
            f"{job.label} does not fit into the memory of {workspace.device}; what was finished is kept. Attacks take "
            f"less with settings: {{columns: {{...: {{batch_size: 50}}}}}}, a training with workers: 1, with settings: "
            f"{{precision: bf16}}, or with another run's settings: {{schedules: {{default: {{batch_size: 64}}}}}}"
        ) from error


def _run_in_processes(seconds: Mapping[Job, float], workspace: Workspace, workers: int, progress: Progress) -> None:
    """Jobs in fresh processes of one thread each, every job after those that it waits for; an error ends them all."""
    refuse_in_worker()
    waiting, running = list(seconds), dict[Future[str], Job]()
    others, started = {*multiprocessing.active_children()}, set[multiprocessing.process.BaseProcess]()
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), begin_worker) as executor:
        try:
            while waiting or running:
                unfinished = {job.digest for job in (*waiting, *running.values())}
                free = [job for job in waiting if not job.waits_for & unfinished]
                for job in free[: workers - len(running)]:  # no more, so that a job that gets free keeps its place
                    waiting.remove(job)
                    running[executor.submit(do, job, workspace)] = job
                    started |= {*multiprocessing.active_children()} - others
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    progress.finish(seconds[running.pop(future)], future.result())
        except BaseException as error:
            executor.shutdown(wait=False, cancel_futures=True)
            for process in started | ({*multiprocessing.active_children()} - others):
                process.terminate()
                process.join()
            if isinstance(error, BrokenProcessPool):
                raise UserError(f"{_died(started)}; what was finished is kept") from error
            raise


def refuse_in_worker() -> None:
    """Raise a UserError in a process that a run was started in: it ran the script that starts them."""
    if multiprocessing.parent_process() is not None:
        raise UserError(f"workers do not start workers; a script is run in each, {UNGUARDED}")


def _died(started: set[multiprocessing.process.BaseProcess]) -> str:
    """Why a worker ended, by its exit code; those that were ended after it have SIGTERM's."""
    codes = {process.exitcode for process in started} - {None, 0, -signal.SIGTERM}
    if not codes:
        return "a worker process was ended from outside: call again"
    if -signal.SIGKILL in codes:
        return "a worker process was killed, as the system does where memory is short: call again, with fewer workers"
    if any(code < 0 for code in codes if code):
        return f"a worker process died of signal {-min(code for code in codes if code)}: call again, or with workers=1"
    return f"a worker process ended as it started, of the error that it printed; a script is run in each, {UNGUARDED}"
