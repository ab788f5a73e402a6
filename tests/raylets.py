"""A Ray cluster of several machines on this one: each raylet has its own processes, to be killed without a farewell.

As root on Linux every further machine is in a network namespace of its own, so that nothing is reached but by network.
"""

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from lib import ROOT

RAY = Path(sys.executable).with_name("ray")
SMALL = ["--num-cpus", "1", "--object-store-memory", "100000000", "--disable-usage-stats", "--block"]


class Cluster:
    """A head and further machines; `environment` is what a driver of it needs."""

    def __init__(self):
        self.folder = Path(tempfile.mkdtemp(prefix="ray"))  # short: the sockets' paths may have 107 characters
        self.name = self.folder.name
        (self.folder / "token").write_text("0123456789abcdef" * 4)
        self.environment = os.environ | {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.folder / "token"),
            "RAY_TMPDIR": str(self.folder),
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "RAY_worker_niceness": "0",  # Ray has 15, beside which whatever else goes on here takes all
        }
        self.network = f"10.{random.randrange(64, 256)}.{random.randrange(256)}"  # other clusters have others
        self.namespaces = self._connect()
        self.host = f"{self.network}.1" if self.namespaces else "127.0.0.1"
        with socket.socket() as free:
            free.bind((self.host, 0))
            self.port = free.getsockname()[1]
        self.address = f"{self.host}:{self.port}"
        self.logs = {}

    def start_head(self):
        options = ["--head", "--port", str(self.port), "--node-ip-address", self.host, "--include-dashboard", "false"]
        self._start("head", [], options)

    def add(self, machine):
        inside = ["ip", "netns", "exec", self.name] if self.namespaces else []
        address = f"{self.network}.2" if self.namespaces else "127.0.0.1"
        self._start(machine, inside, ["--address", self.address, "--node-ip-address", address])

    def _start(self, machine, inside, options):
        self.logs[machine] = log = (self.folder / f"{machine}.log").open("w+")
        environment = self.environment | {"MACHINE": f"{self.name}-{machine}"}
        command = [*inside, RAY, "start", *options, *SMALL]
        subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        until(lambda: "Ray runtime started" in (self.folder / f"{machine}.log").read_text(), 60)

    def processes(self, machine=""):
        """The processes of a machine, or of all of them, with their command lines."""
        wanted, found = f"MACHINE={self.name}-{machine}".encode(), {}
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if wanted in (process / "environ").read_bytes():
                    found[int(process.name)] = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
        return found

    def workers(self, machine=""):
        """The processes that are at a job now."""
        return [pid for pid, line in self.processes(machine).items() if line.startswith("ray::work")]

    def kill(self, machine=""):
        """As if the power went: every process of the machine at once."""
        kill(*self.processes(machine))

    def stop(self):
        self.kill()
        for log in self.logs.values():
            log.close()
        if self.namespaces:
            subprocess.run(["ip", "netns", "delete", self.name], check=False)
            subprocess.run(["ip", "link", "delete", self._link], check=False, capture_output=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def _link(self):
        return f"v{self.name[-8:]}"

    def _connect(self):
        """A namespace with a link to this one; whether that works here."""
        commands = [
            f"ip netns add {self.name}",
            f"ip link add {self._link} type veth peer name inside netns {self.name}",
            f"ip address add {self.network}.1/24 dev {self._link}",
            f"ip link set {self._link} up",
            f"ip netns exec {self.name} ip address add {self.network}.2/24 dev inside",
            f"ip netns exec {self.name} ip link set inside up",
            f"ip netns exec {self.name} ip link set lo up",
        ]
        if shutil.which("ip") is None:
            return False
        done = [subprocess.run(each.split(), check=False, capture_output=True).returncode == 0 for each in commands]
        return all(done)


def kill(*processes):
    for pid in processes:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def until(true, seconds):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"{true} was not so within {seconds} seconds"
        time.sleep(0.1)
