#!/usr/bin/env python3
"""A real SLURM cluster in a private folder: munged, slurmctld and a slurmd per node, on ports of their own.

The test of the SLURM profile submits to it, and one can try `snakemake --profile slurm all` in it on a laptop or in a
container. It needs the programs of Debian's or Ubuntu's packages `slurm-wlm` and `munge`; no systemd, no cgroups, no
accounting database. It runs as root (as in a container) or as any user, and leaves nothing behind.

    python tests/slurm/cluster.py --install                                # the packages only (root, apt-get)
    python tests/slurm/cluster.py run -- snakemake --profile slurm all     # start, run a command in it, stop
    eval "$(python tests/slurm/cluster.py start --folder FOLDER)"          # start, and let this shell use it
    python tests/slurm/cluster.py stop --folder FOLDER

It has one node, or several (--nodes), which all are this machine. Each has one gpu, or several (--gpus), which are
/dev/null and the like, so that they can be asked for. The settings are in slurm.conf, beside this file. Only the
standard library is used, because this may have to run before anything is installed.
"""

from __future__ import annotations

import argparse
import contextlib
import getpass
import json
import os
import re
import secrets
import shlex
import shutil
import signal
import socket
import string
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

PACKAGES = ("slurm-wlm", "munge")
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "sinfo", "scancel", "scontrol")
TEMPLATE = Path(__file__).with_name("slurm.conf")
NODE = "bulwark"
DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random")  # what stands for gpus
MARK = "BULWARK_SLURM_NODE"  # environment variable of slurmd and its job managers, not of jobs: whom `stop` ends


class ClusterError(Exception):
    """The cluster cannot be started; the text says what is missing, or ends with the log that tells."""


def missing_programs() -> list[str]:
    """The programs of SLURM and munge that are not on this machine."""
    return [name for name in PROGRAMS if _program(name) is None]


def what_is_missing() -> str:
    """A sentence that names the missing programs and says how to get them; empty if none is missing."""
    if not missing_programs():
        return ""
    return (
        f"Not on this machine: {', '.join(missing_programs())}. Debian and Ubuntu have them in the packages "
        f"{' and '.join(PACKAGES)}: `apt-get install {' '.join(PACKAGES)}`, or give --install as root."
    )


def install() -> None:
    """Install SLURM and munge with apt-get where they are missing. Raises ClusterError where that is impossible."""
    if not missing_programs():
        return
    if shutil.which("apt-get") is None or os.geteuid() != 0:
        raise ClusterError(f"{what_is_missing()} To install needs root and apt-get, and here there is not both.")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["apt-get", "update"], ["apt-get", "install", "-y", "--no-install-recommends", *PACKAGES]):
        done = subprocess.run(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        if done.returncode != 0:
            raise ClusterError(f"`{' '.join(command)}` failed:\n{done.stdout[-3000:]}")
    if missing_programs():
        raise ClusterError(what_is_missing())


class Cluster:
    """`with Cluster(folder) as cluster:` starts it, and stops it whatever happens in between.

    folder: is made, and holds configuration, logs and state. Its path must be short, for munge's socket.
    cpus, memory_mb, gpus: what each node claims to have; by default what the machine has, and one.
    more: {key of slurm.conf: value} in the place of what the file says, or beside it.
    """

    def __init__(
        self,
        folder: Path,
        cpus: int | None = None,
        memory_mb: int | None = None,
        nodes: int = 1,
        gpus: int = 1,
        more: Mapping[str, str] | None = None,
    ) -> None:
        if gpus > len(DEVICES):
            raise ClusterError(f"{gpus} gpus were asked for; at most {len(DEVICES)} devices can stand for them.")
        self.folder = folder.absolute()
        self.nodes = [NODE] if nodes == 1 else [f"{NODE}{number + 1}" for number in range(nodes)]
        self.gpus = gpus
        self.more = dict(more or {})
        self.cpus = cpus or os.cpu_count() or 1
        self.memory_mb = memory_mb or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20
        self.configuration = self.folder / "slurm.conf"

    def __enter__(self) -> Cluster:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to use this cluster: the name of its slurm.conf."""
        return {"SLURM_CONF": str(self.configuration)}

    def start(self, patience: float = 60.0) -> None:
        """Start the daemons and wait until the node is idle, at most `patience` seconds.

        Raises ClusterError, with everything stopped again, if a program is missing, ends, or is not ready in time.
        """
        if len(str(self.folder)) > 80:
            raise ClusterError(f"The path of the cluster's folder is too long for munge's socket: {self.folder}")
        if missing_programs():
            raise ClusterError(what_is_missing())
        if self._daemons():
            raise ClusterError(f"A cluster was started in {self.folder}; stop it first.")
        self._write_files()
        munge = {name: self.folder / f"munge.{name}" for name in ("key", "socket", "seed", "pid", "messages")}
        try:
            self._launch(
                *("munged", "--foreground", "--force", f"--key-file={munge['key']}", f"--socket={munge['socket']}"),
                *(f"--seed-file={munge['seed']}", f"--pid-file={munge['pid']}", f"--log-file={munge['messages']}"),
            )
            self._wait_for(munge["socket"].exists, patience)
            self._launch("slurmctld", "-D", "-c", "-f", str(self.configuration))
            for node in self.nodes:
                self._launch("slurmd", "-D", "-N", node, "-f", str(self.configuration), name=f"slurmd.{node}")
            states = ("-N", "-h", "-o", "%T")
            idle = ["idle"] * len(self.nodes)
            self._wait_for(lambda: self.command("sinfo", *states, check=False).split() == idle, patience)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Cancel what runs, then end the daemons and all that slurmd has started. May be called twice."""
        daemons = self._daemons()
        if "slurmctld" in daemons and _alive(daemons["slurmctld"]):
            self.command("scancel", f"--user={getpass.getuser()}", check=False)
            _wait(lambda: not self.command("squeue", "-h", check=False).strip(), seconds=10)
        order = ("slurmd", "slurmctld", "munged")
        for name in sorted(daemons, key=lambda name: order.index(name.split(".")[0])):
            _end([daemons[name]])
        managers = _processes_with(MARK, str(self.folder))
        _end([*_descendants(managers), *managers])
        (self.folder / "daemons.json").unlink(missing_ok=True)

    def command(self, program: str, *arguments: str, check: bool = True) -> str:
        """Run one of SLURM's programs against this cluster; what it printed. Raises ClusterError if it fails."""
        words = [_program(program) or program, *arguments]
        environment = {**os.environ, **self.environment}
        done = subprocess.run(words, env=environment, text=True, capture_output=True, timeout=60)
        if check and done.returncode != 0:
            raise ClusterError(f"`{shlex.join(words)}` failed:\n{done.stderr}")
        return done.stdout

    def ended_jobs(self) -> dict[str, dict[str, str]]:
        """SLURM's own record of the jobs that ended, by job id, with its keys (JobState, StartTime, EndTime, ...)."""
        log = self.folder / "jobs.log"
        lines = log.read_text().splitlines() if log.exists() else []
        jobs = [dict(word.split("=", 1) for word in line.split() if "=" in word) for line in lines]
        return {job["JobId"]: job for job in jobs if job}

    def condition(self) -> str:
        """The state of the node and of the jobs, and the ends of the daemons' logs: what to read when a job hangs."""
        node = self.command("sinfo", "-N", "-h", "-o", "node %N is %T, reason: %E", check=False)
        jobs = self.command("squeue", "-h", "-o", "job %i is %T, reason: %r", check=False)
        return f"{node}{jobs}{self._ends_of_logs()}"

    def _write_files(self) -> None:
        for folder in ("state", *(f"spool.{node}" for node in self.nodes)):
            (self.folder / folder).mkdir(parents=True, exist_ok=True)
        key = self.folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(secrets.token_bytes(128))
        controller_port, *node_ports = _free_ports(1 + len(self.nodes))
        host = socket.gethostname().split(".")[0]
        has = f"CPUs={self.cpus} RealMemory={self.memory_mb} Gres=gpu:{self.gpus} State=UNKNOWN"
        lines = [
            f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} {has}"
            for node, port in zip(self.nodes, node_ports, strict=True)
        ]
        settings = {
            "folder": self.folder,
            "host": host,
            "user": getpass.getuser(),
            "controller_port": controller_port,
            "nodes": "\n".join(lines),
        }
        text = string.Template(TEMPLATE.read_text()).substitute(settings)
        for key, value in self.more.items():
            text = re.sub(rf"^{key}=.*\n", "", text, flags=re.MULTILINE) + f"{key}={value}\n"
        self.configuration.write_text(text)
        devices = (f"NodeName={node} Name=gpu File={file}\n" for node in self.nodes for file in DEVICES[: self.gpus])
        (self.folder / "gres.conf").write_text("".join(devices))

    def _daemons(self) -> dict[str, int]:
        """Process ids of the daemons that were started here and not stopped yet."""
        file = self.folder / "daemons.json"
        return json.loads(file.read_text()) if file.exists() else {}

    def _launch(self, program: str, *arguments: str, name: str = "") -> None:
        name = name or program
        with (self.folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                [_program(program), *arguments],
                env={**os.environ, **self.environment, **({MARK: str(self.folder)} if program == "slurmd" else {})},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                start_new_session=True,
            )
        (self.folder / "daemons.json").write_text(json.dumps({**self._daemons(), name: process.pid}))

    def _wait_for(self, ready: Callable[[], bool], seconds: float) -> None:
        if _wait(lambda: ready() or self._fallen(), seconds) and not self._fallen():
            return
        what = f"{', '.join(self._fallen())} ended at once" if self._fallen() else f"Not ready after {seconds:.0f} s"
        raise ClusterError(f"{what}. The logs end with:\n{self._ends_of_logs()}")

    def _ends_of_logs(self) -> str:
        ends = {log.name: log.read_text(errors="replace")[-2000:] for log in sorted(self.folder.glob("*.log"))}
        return "\n".join(f"--- {name}\n{end}" for name, end in ends.items())

    def _fallen(self) -> list[str]:
        return [name for name, pid in self._daemons().items() if not _alive(pid)]


def _program(name: str) -> str | None:
    """Where a program is; daemons lie in /usr/sbin, which not every user has in PATH."""
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin:/sbin")


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("", 0))
        return [each.getsockname()[1] for each in sockets]


def _wait(ready: Callable[[], object], seconds: float) -> bool:
    """Look five times a second until `ready`; False if it was not within `seconds`."""
    end = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > end:
            return False
        time.sleep(0.2)
    return True


def _stat(pid: int | str) -> list[str]:
    """State, parent, ... of a process as in /proc/PID/stat, from the third field; of one that is gone, a zombie's."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return ["Z", "0"]


def _alive(pid: int) -> bool:
    return _stat(pid)[0] != "Z"


def _end(pids: list[int]) -> None:
    """Terminate processes by id; kill those that are still there after five seconds."""
    for signum in (signal.SIGTERM, signal.SIGKILL):
        for pid in filter(_alive, pids):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signum)
        _wait(lambda: not any(map(_alive, pids)), seconds=5)
    for pid in pids:
        with contextlib.suppress(ChildProcessError):  # not ours, if another process has started the cluster
            os.waitpid(pid, os.WNOHANG)


def _processes() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def _processes_with(variable: str, value: str) -> list[int]:
    """Processes that were started with this environment variable."""
    found = []
    for pid in _processes():
        with contextlib.suppress(OSError):  # gone meanwhile, or another user's
            if f"{variable}={value}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                found.append(pid)
    return found


def _descendants(pids: list[int]) -> list[int]:
    children: dict[int, list[int]] = {}
    for pid in _processes():
        children.setdefault(int(_stat(pid)[1]), []).append(pid)
    found, queue = [], list(pids)
    while queue:
        below = children.get(queue.pop(), [])
        found += below
        queue += below
    return found


def main() -> int:
    """The command line; see the top of the file."""
    parser = argparse.ArgumentParser(
        usage="%(prog)s [start|stop|run] [options] [-- command]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("action", nargs="?", choices=["start", "stop", "run"])
    parser.add_argument("--folder", type=Path, help="where the cluster lives; run makes a temporary one by default")
    parser.add_argument("--install", action="store_true", help="first install what is missing (root, apt-get)")
    parser.add_argument("--nodes", type=int, default=1, help="how many nodes (default: 1)")
    parser.add_argument("--gpus", type=int, default=1, help="gpus that each node shows (default: 1)")
    parser.add_argument("--cpus", type=int, help="CPUs that each node shows (default: the machine's)")
    parser.add_argument("--memory-mb", type=int, help="memory that each node shows (default: the machine's)")
    words = sys.argv[1:]
    split = words.index("--") if "--" in words else len(words)
    given, command = parser.parse_args(words[:split]), words[split + 1 :]
    if given.action is None and not given.install:
        parser.error("say start, stop or run, or only --install")
    if given.action in ("start", "stop") and given.folder is None:
        parser.error(f"{given.action} needs --folder")
    if (given.action == "run") != bool(command):
        parser.error("run, and only run, takes a command after --")
    try:
        return _act(given, command)
    except ClusterError as error:
        print(error, file=sys.stderr)
        return 1


def _act(given: argparse.Namespace, command: list[str]) -> int:
    if given.install:
        install()
    if given.action is None:
        return 0
    with contextlib.ExitStack() as stack:
        folder = given.folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="slurm-")))
        shape = {name: getattr(given, name) for name in ("nodes", "gpus", "cpus", "memory_mb")}
        cluster = Cluster(folder, **shape)
        if given.action == "run":
            stack.enter_context(cluster)
            return subprocess.run(command, env={**os.environ, **cluster.environment}).returncode
    if given.action == "stop":
        cluster.stop()
    else:
        cluster.start()
        print("\n".join(f"export {key}={shlex.quote(value)}" for key, value in cluster.environment.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
