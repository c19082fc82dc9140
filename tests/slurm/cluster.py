#!/usr/bin/env python3
"""A real SLURM cluster of one node, in a private folder: munged, slurmctld and slurmd on ports of their own.

It is what the test of the SLURM profile submits to, and a place to try `snakemake --profile slurm all` on a laptop or in a
container. It needs the programs of Debian's or Ubuntu's packages `slurm-wlm` and `munge`, no systemd, no cgroups, no accounting
database; it runs as root (as in a container) or as any user, and leaves nothing behind.

    python tests/slurm/cluster.py run --install -- snakemake --profile slurm all     # start, run a command in it, stop
    python tests/slurm/cluster.py start --folder FOLDER                              # prints the line to source
    python tests/slurm/cluster.py stop --folder FOLDER

The node shows as many CPUs as the machine has and one gpu that is /dev/null, so that `--gpus=1` can be asked for. SLURM here
counts CPUs, memory and gpus but fences nothing in (proctrack/linuxproc, task/none). Only the standard library is used, because
the script may have to run before anything is installed.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import getpass
import json
import os
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

PACKAGES = ("slurm-wlm", "munge")
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "sinfo", "scancel", "scontrol", "sacct")
NODE = "bulwark"
MARK = "BULWARK_SLURM_NODE"
"""Environment variable of slurmd and of the job managers that it starts: whom `stop` may end. Jobs do not inherit it."""


class ClusterError(Exception):
    """The cluster cannot be started; the text says what is missing, or ends with the log that tells."""


def missing_programs() -> list[str]:
    """The programs of SLURM and munge that are not on this machine."""
    return [name for name in PROGRAMS if _program(name) is None]


def install() -> None:
    """Install SLURM and munge with apt-get. Raises ClusterError where that is impossible."""
    if not missing_programs():
        return
    if shutil.which("apt-get") is None or os.geteuid() != 0:
        raise ClusterError(f"{_what_is_missing()} Installing needs root and apt-get, and here there is not both.")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["apt-get", "update"], ["apt-get", "install", "-y", "--no-install-recommends", *PACKAGES]):
        done = subprocess.run(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        if done.returncode != 0:
            raise ClusterError(f"`{' '.join(command)}` failed:\n{done.stdout[-3000:]}")
    if missing_programs():
        raise ClusterError(_what_is_missing())


@dataclasses.dataclass
class Cluster:
    """One node; `with Cluster(folder) as cluster:` starts it and stops it whatever happens in between.

    `folder` is created and holds configuration, logs and state; its path must be short (munge's socket allows 107 characters).
    `cpus` and `memory_mb` are what the node claims to have, not checked against the machine; by default its CPUs, and all its memory.
    """

    folder: Path
    cpus: int = dataclasses.field(default_factory=lambda: os.cpu_count() or 1)
    memory_mb: int = dataclasses.field(default_factory=lambda: _machine_memory_mb())
    start_seconds: float = 60.0

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to find this cluster: the name of its slurm.conf, and a PATH with an srun that knows it.

        The plugin's job steps drop SLURM_CONF before they call srun (snakemake-executor-plugin-slurm-jobstep 0.6.1), which then looks
        in /etc/slurm only; so a two-line srun that sets it again and runs the real one stands first in PATH.
        """
        path = os.pathsep.join([str(self.folder / "bin"), os.environ.get("PATH", os.defpath)])
        return {"SLURM_CONF": str(self.configuration), "PATH": path}

    @property
    def configuration(self) -> Path:
        """The cluster's slurm.conf."""
        return self.folder / "slurm.conf"

    @property
    def completed_jobs_log(self) -> Path:
        """SLURM's own list of the jobs that ended, one line of KEY=VALUE each."""
        return self.folder / "jobs.log"

    def __enter__(self) -> Cluster:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start the three daemons and wait until the node is idle. Raises ClusterError, with everything stopped again."""
        if missing_programs():
            raise ClusterError(_what_is_missing())
        if len(str(self.folder.absolute())) > 80:
            raise ClusterError(f"The folder of the cluster has too long a path for munge's socket: {self.folder}")
        self.folder.mkdir(parents=True, exist_ok=True)
        if (self.folder / "processes.json").exists():
            raise ClusterError(f"A cluster was started in {self.folder}; stop it first.")
        self._write_configuration()
        try:
            socket_, key, seed = self.folder / "munge.socket", self.folder / "munge.key", self.folder / "munge.seed"
            self._launch(
                "munged", "--foreground", "--force", f"--key-file={key}", f"--socket={socket_}", f"--seed-file={seed}",
                f"--pid-file={self.folder / 'munged.pid'}", f"--log-file={self.folder / 'munged.messages'}", "--num-threads=2",
            )  # fmt: skip
            self._wait_for("munged", socket_.exists)
            self._launch("slurmctld", "-D", "-c", "-f", str(self.configuration))
            self._launch("slurmd", "-D", "-N", NODE, "-f", str(self.configuration), environment={MARK: str(self.folder)})
            self._wait_for("slurmctld", lambda: self.command("sinfo", "--noheader", "--format=%T", check=False).strip() == "idle")
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Cancel what runs, end the daemons, and with them every process that slurmd has started. May be called twice."""
        started = self._processes()
        if "slurmctld" in started:
            self.command("scancel", f"--user={getpass.getuser()}", check=False)
            with contextlib.suppress(TimeoutError):
                _wait(lambda: not self.command("squeue", "--noheader", check=False).strip(), seconds=10)
        for name in ("slurmd", "slurmctld", "munged"):
            if name in started:
                _end([started[name]])
        managers = _marked(MARK, str(self.folder))
        _end([*_descendants(managers), *managers])
        (self.folder / "processes.json").unlink(missing_ok=True)

    def command(self, program: str, *arguments: str, check: bool = True) -> str:
        """Run one of SLURM's programs against this cluster and return what it printed. Raises ClusterError if it fails."""
        done = subprocess.run(
            [_program(program) or program, *arguments], env={**os.environ, **self.environment}, text=True, capture_output=True, timeout=60
        )
        if check and done.returncode != 0:
            raise ClusterError(f"`{program} {' '.join(arguments)}` failed:\n{done.stderr}")
        return done.stdout

    def completed_jobs(self) -> list[dict[str, str]]:
        """The jobs that ended so far, oldest first, with SLURM's keys (JobId, Name, JobState, StartTime, ...)."""
        if not self.completed_jobs_log.exists():
            return []
        lines = self.completed_jobs_log.read_text().splitlines()
        return [dict(part.split("=", 1) for part in line.split() if "=" in part) for line in lines if line.strip()]

    def _write_configuration(self) -> None:
        key = self.folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(secrets.token_bytes(128))
        for name in ("state", "spool", "bin"):
            (self.folder / name).mkdir(exist_ok=True)
        self.configuration.write_text(self._slurm_conf())
        (self.folder / "gres.conf").write_text(f"NodeName={NODE} Name=gpu File=/dev/null\n")
        srun = self.folder / "bin" / "srun"
        srun.write_text(f'#!/bin/sh\nSLURM_CONF={shlex.quote(str(self.configuration))} exec {_program("srun")} "$@"\n')
        srun.chmod(0o755)

    def _slurm_conf(self) -> str:
        host, user = socket.gethostname().split(".")[0], getpass.getuser()
        controller_port, node_port = _free_ports(2)
        settings = {
            "ClusterName": NODE,
            "SlurmctldHost": f"{host}(127.0.0.1)",
            "SlurmctldPort": controller_port,
            "SlurmdPort": node_port,
            "SlurmUser": user,
            "SlurmdUser": user,
            "AuthType": "auth/munge",
            "AuthInfo": f"socket={self.folder / 'munge.socket'}",
            "StateSaveLocation": self.folder / "state",
            "SlurmdSpoolDir": self.folder / "spool",
            "SlurmctldPidFile": self.folder / "slurmctld.pid",
            "SlurmdPidFile": self.folder / "slurmd.pid",
            "ProctrackType": "proctrack/linuxproc",
            "TaskPlugin": "task/none",
            "SwitchType": "switch/none",
            "MpiDefault": "none",
            "SelectType": "select/cons_tres",
            "SelectTypeParameters": "CR_CPU_Memory",
            "GresTypes": "gpu",
            "AccountingStorageType": "accounting_storage/none",
            "JobAcctGatherType": "jobacct_gather/none",
            "JobCompType": "jobcomp/filetxt",
            "JobCompLoc": self.completed_jobs_log,
            "SchedulerParameters": "batch_sched_delay=0,sched_min_interval=0",
            "SlurmdParameters": "config_overrides",
            "KillWait": 2,
            "ReturnToService": 2,
        }
        lines = [f"{key}={value}" for key, value in settings.items()]
        lines.append(
            f"NodeName={NODE} NodeHostname={host} NodeAddr=127.0.0.1 CPUs={self.cpus} RealMemory={self.memory_mb} Gres=gpu:1 State=UNKNOWN"
        )
        lines.append("PartitionName=test Nodes=ALL Default=YES MaxTime=INFINITE State=UP")
        return "\n".join(lines) + "\n"

    def _launch(self, name: str, *arguments: str, environment: dict[str, str] | None = None) -> None:
        with (self.folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                [_program(name) or name, *arguments],
                env={**os.environ, **self.environment, **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                start_new_session=True,
            )
        (self.folder / "processes.json").write_text(json.dumps({**self._processes(), name: process.pid}))

    def _processes(self) -> dict[str, int]:
        file = self.folder / "processes.json"
        return json.loads(file.read_text()) if file.exists() else {}

    def _wait_for(self, name: str, ready) -> None:
        def look() -> bool:
            for daemon, pid in self._processes().items():
                if not _alive(pid):
                    raise ClusterError(f"{daemon} ended at once; its log:\n{_tail(self.folder / f'{daemon}.log')}")
            return ready()

        try:
            _wait(look, self.start_seconds)
        except TimeoutError:
            logs = "\n".join(f"--- {file.name}\n{_tail(file)}" for file in sorted(self.folder.glob("*.log")))
            raise ClusterError(f"{name} was not ready within {self.start_seconds:.0f} s.\n{logs}") from None


def _program(name: str) -> str | None:
    """Where a program is; the daemons lie in /usr/sbin, which not every user has in PATH."""
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin:/sbin")


def _what_is_missing() -> str:
    return (
        f"Not on this machine: {', '.join(missing_programs())}. Debian and Ubuntu have them in the packages {' and '.join(PACKAGES)}: "
        f"`apt-get install {' '.join(PACKAGES)}`, or give --install as root."
    )


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("", 0))
        return [each.getsockname()[1] for each in sockets]


def _machine_memory_mb() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20


def _wait(ready, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > end:
            raise TimeoutError
        time.sleep(0.2)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _end(pids: Iterable[int]) -> None:
    """Terminate processes by id; kill those that are still there after five seconds."""
    pids = list(pids)
    for sign in (signal.SIGTERM, signal.SIGKILL):
        for pid in filter(_alive, pids):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, sign)
        with contextlib.suppress(TimeoutError):
            _wait(lambda: not any(map(_alive, pids)), seconds=5)
    for pid in pids:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)


def _marked(name: str, value: str) -> list[int]:
    """Processes that carry the environment variable `name` = `value`."""
    entry = f"{name}={value}".encode()
    found = []
    for environ in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if entry in environ.read_bytes().split(b"\0"):
                found.append(int(environ.parent.name))
    return [pid for pid in found if pid != os.getpid()]


def _descendants(pids: list[int]) -> list[int]:
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            children.setdefault(int(stat.read_text().rpartition(")")[2].split()[1]), []).append(int(stat.parent.name))
    found: list[int] = []
    queue = list(pids)
    while queue:
        below = children.get(queue.pop(), [])
        found += below
        queue += below
    return found


def _tail(file: Path, characters: int = 3000) -> str:
    return file.read_text(errors="replace")[-characters:] if file.exists() else "(no log)"


def main() -> int:
    """The command line; see the top of the file."""
    parser = argparse.ArgumentParser(usage="%(prog)s {start,stop,run} [options] [-- command]", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["start", "stop", "run"])
    parser.add_argument("--folder", type=Path, help="where the cluster lives; `run` makes a temporary one by default")
    parser.add_argument("--install", action="store_true", help="install SLURM and munge with apt-get where they are missing (root)")
    parser.add_argument("--cpus", type=int, default=os.cpu_count(), help="CPUs that the node shows (default: the machine's)")
    parser.add_argument("--memory-mb", type=int, default=_machine_memory_mb(), help="memory that the node shows, in MB")
    words = sys.argv[1:]
    split = words.index("--") if "--" in words else len(words)
    given, command = parser.parse_args(words[:split]), words[split + 1 :]
    if given.action != "run" and given.folder is None:
        parser.error("--folder is needed")
    if given.action == "run" and not command:
        parser.error("run needs a command after --")
    try:
        if given.install:
            install()
        with contextlib.ExitStack() as stack:
            folder = given.folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="slurm-")))
            cluster = Cluster(folder.absolute(), cpus=given.cpus, memory_mb=given.memory_mb)
            if given.action == "stop":
                cluster.stop()
            elif given.action == "start":
                cluster.start()
                print("\n".join(f"export {key}={value}" for key, value in cluster.environment.items()))
            else:
                with cluster:
                    return subprocess.run(command, env={**os.environ, **cluster.environment}).returncode
    except ClusterError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
