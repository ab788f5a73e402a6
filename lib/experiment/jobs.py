"""Jobs done here or in several processes, each after the jobs that make the networks it uses, with their progress."""

import multiprocessing
import multiprocessing.process
import signal
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from functools import partial

import torch

from lib.attacks.folding import folded
from lib.data import to_float
from lib.errors import UserError
from lib.evaluate import VERSION, AttackSpec, Finding, sanity_checks
from lib.experiment import networks, runs
from lib.experiment.networks import Network, Workspace, measure, network, network_digest, provenance, stored
from lib.experiment.progress import Progress
from lib.experiment.spec import DataSpec, RunSpec, digest_of
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
    def digest(self) -> str:
        """What its results are kept under."""
        return network_digest(self.network, self.data)

    @property
    def waits_for(self) -> set[str]:
        """The digests of the jobs that have to be done before this one."""
        teacher = self.network.teacher if isinstance(self.network, RunSpec) else None
        return {network_digest(net, self.data) for net in (teacher, *self.surrogates) if net is not None}

    def state(self, workspace: Workspace) -> str:
        """How far it is; "complete" where nothing is left to do."""
        made = not isinstance(self.network, RunSpec) or workspace.store.has(self.network.digest)
        if made and None not in stored(self.network, self.data, workspace, self.columns, self.checkpoint):
            return "complete"
        if not isinstance(self.network, RunSpec):
            return "given, to be measured"
        begun = workspace.store.checkpoint(self.digest).exists()
        return "trained, to be measured" if made else "begun, goes on" if begun else "to be trained"

    def do(self, workspace: Workspace, notify: Callable[[float], None] = lambda share: None) -> str:
        """Make what is not in the store; returns it in a line."""
        if isinstance(self.network, RunSpec):
            runs.make(self.network, workspace, notify)
        rows = measure(self.network, self.data, workspace, self.columns, self.checkpoint, self.surrogates)
        return f"{self.label}: " + ", ".join(f"{row.column.name} {row.percent:.1f}" for row in rows)


@dataclass(frozen=True, kw_only=True)
class Check(Job):
    """The sanity checks of a made network on its first images; transfers come from a surrogate, if there is one."""

    images: int
    epsilon: float  # in [0, 1]

    @property
    def digest(self) -> str:
        """What tells it from the job that makes its network."""
        return f"{super().digest}-{self._key}"

    @property
    def _key(self) -> str:
        unrelated = self.surrogates[0].digest if self.surrogates else None
        return digest_of(["sanity", self.images, self.epsilon, self.checkpoint, unrelated, VERSION])

    @property
    def waits_for(self) -> set[str]:
        """Its network's job as well."""
        return super().waits_for | {super().digest}

    def state(self, workspace: Workspace) -> str:
        """As a job's."""
        return "sanity to be checked" if self.findings(workspace) is None else "complete"

    def findings(self, workspace: Workspace) -> tuple[Finding, ...] | None:
        """The findings as they are kept, or None."""
        rows = networks.read_rows(self.network, self.data, workspace, self._key)
        fields = ("check", "value", "limit", "meaning")
        return None if rows is None else tuple(Finding(*(row[name] for name in fields)) for row in rows)

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
                rows = [asdict(finding) | {"provenance": provenance(workspace)} for finding in findings]
                networks.write_rows(self.network, self.data, workspace, self._key, self.checkpoint, rows)
        fired = ", ".join(finding.check for finding in findings if finding.fired)
        return f"{self.label}: {fired + ' fired' if fired else 'sound'}"


def run_jobs(seconds: Mapping[Job, float], workspace: Workspace, workers: int) -> None:
    """Do every job, `workers` at once; `seconds` is what each is expected to take and weighs it in the progress."""
    progress = Progress([*seconds.values()])
    with progress.bar:
        if workers == 1 or len(seconds) == 1:
            for job, own in seconds.items():
                progress.finish(own, _do(job, workspace, partial(progress.show, own)))
        else:
            _run_in_processes(seconds, workspace, workers, progress)


def _do(job: Job, workspace: Workspace, notify: Callable[[float], None] = lambda share: None) -> str:
    """job.do, a lack of memory as a UserError."""
    try:
        return job.do(workspace, notify)
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise UserError(
            f"{job.label} does not fit into the memory of {workspace.device}; what was finished is kept. Attacks take "
            f"less with settings: {{columns: {{...: {{batch_size: 50}}}}}}, a training with workers: 1, with settings: "
            f"{{precision: bf16}}, or with another run's settings: {{schedules: {{default: {{batch_size: 64}}}}}}"
        ) from error


def _run_in_processes(seconds: Mapping[Job, float], workspace: Workspace, workers: int, progress: Progress) -> None:
    """Jobs in fresh processes of one thread each, every job after those that it waits for; an error ends them all."""
    if multiprocessing.parent_process() is not None:
        raise UserError(f"workers do not start workers; a script is run in each, {UNGUARDED}")
    waiting, running = list(seconds), dict[Future[str], Job]()
    others, started = {*multiprocessing.active_children()}, set[multiprocessing.process.BaseProcess]()
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), begin_worker) as executor:
        try:
            while waiting or running:
                unfinished = {job.digest for job in (*waiting, *running.values())}
                for job in [job for job in waiting if not job.waits_for & unfinished]:
                    waiting.remove(job)
                    running[executor.submit(_do, job, workspace)] = job
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


def _died(started: set[multiprocessing.process.BaseProcess]) -> str:
    """Why a worker ended, by its exit code; those that were ended after it have SIGTERM's."""
    codes = {process.exitcode for process in started} - {None, 0, -signal.SIGTERM}
    if -signal.SIGKILL in codes:
        return "a worker process was killed, as the system does where memory is short: call again, with fewer workers"
    if any(code < 0 for code in codes if code):
        return f"a worker process died of signal {-min(code for code in codes if code)}: call again, or with workers=1"
    return f"a worker process ended as it started, of the error that it printed; a script is run in each, {UNGUARDED}"
