"""The warm parent: a process of a local workflow that has the heavy modules imported and forks a child for each job.

`snakemake` calls `offer` when it starts. The first job that wants a warm parent starts it; `hand_over` sends a job's
call to it with the job's standard streams, environment, working directory and umask, and exits as the child exits.
Without a parent `hand_over` returns, and the job goes on in its own process.

* The parent belongs to one workflow, one set of environment variables and one version of the code: all three are in
  the name of its socket, so edited code is never served by a parent that has imported the old one.
* The socket is an abstract one of Linux (no file to clean up, and only one process can bind a name), open to this user
  only.
* The parent ends when the workflow does, however that ends; a child ends with the parent or with its job's process.
* Snakemake's `benchmark:` files measure the job's own process: their seconds are right, but CPU time and memory of the
  child are not in them.
"""

from __future__ import annotations

import gc
import hashlib
import importlib
import os
import pickle
import pkgutil
import resource
import select
import signal
import site
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import bulwark
from bulwark import interrupts
from bulwark.jobs import process
from bulwark.logs import log_to

VARIABLE = interrupts.WORKFLOW

# What jobs import inside functions; the package's own modules bring the rest of torch and transformers. Whatever is
# missing here is imported by the child.
HEAVY = (
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.llama.modeling_llama",  # the miniature's
    "transformers.optimization",
    "deepspeed.ops",
    "torch.utils.tensorboard",
)
# What few jobs need: what draws, and tables.
_LEFT_OUT = ("bulwark.evaluation.roc", "bulwark.reporting")
# While they are imported: pyarrow's allocator would run a thread, and DeepSpeed would look for devices.
_IMPORTING = {"JE_ARROW_MALLOC_CONF": "background_thread:false", "DS_ACCELERATOR": "cpu"}
# Variables that differ between jobs or shells but decide nothing at import.
_VOLATILE = {"_", "PWD", "OLDPWD", "SHLVL", "TMPDIR", "TMP", "TEMP", "TEMPDIR"}
_FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
_SECONDS_BETWEEN_CHECKS = 30
_SECONDS_TO_DIE = 10
_SECONDS_TO_START = 120
_told: list[int] = []  # the signals that the job's process has passed on


# In Snakemake's process


def offer(local: bool) -> None:
    """Let the jobs of this Snakemake process use a warm parent, if they run on this machine (`local`)."""
    os.environ.pop(VARIABLE, None)
    if local:
        os.environ[VARIABLE] = interrupts.workflow_here()


# In the job's process


def hand_over(call: Mapping[str, Any], *, start: bool = True) -> None:
    """Have the warm parent do `call` and exit as its child exits; return if there is no parent that could.

    start: start the parent if there is none.
    """
    workflow = os.environ.get(VARIABLE)
    if not workflow or not _possible():
        return
    try:
        parent = _connected(workflow, start)
        child = None if parent is None else _child_of(parent)
    except OSError:
        return
    if parent is None or child is None:  # none there, or it ended before it forked
        return
    before = _forward_signals(child)
    try:
        socket.send_fds(parent, [b"\0"], [0, 1, 2])
        parent.sendall(pickle.dumps({**call, **_surroundings()}))
    except OSError:  # the child has crashed; the parent says how
        pass
    status = _received(parent)
    if status is not None:
        _exit_like(status)
    # The parent was killed, and its child with it.
    select.select([child], [], [], _SECONDS_TO_DIE)
    if _told or not _alive(workflow):
        os._exit(128 + _told[0] if _told else 1)
    for number, handler in before.items():
        signal.signal(number, handler)
    print("The warm parent was killed; this job starts again in its own process.", file=sys.stderr, flush=True)


def _possible() -> bool:
    """Whether a forked child would be like a fresh process: on Linux, outside SLURM, on one thread, without a GPU."""
    if not hasattr(os, "pidfd_open") or {"SLURM_JOB_ID", "WORLD_SIZE"} & set(os.environ):
        return False
    if os.environ.get("OMP_NUM_THREADS") != "1":  # set by Snakemake; with more, OpenBLAS starts threads on import
        return False
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    return hidden or not any(os.path.exists(path) for path in ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg"))


def _connected(workflow: str, start: bool) -> socket.socket | None:
    """A connection to the parent, which is started if need be; None if there is none or it is another user's."""
    name = _socket_name(workflow)
    for _ in range(100):
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.connect(name)
            if _same_user(connection):
                return connection
            connection.close()
            return None
        except ConnectionRefusedError:
            connection.close()
        if not start:
            return None
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            try:
                listener.bind(name)
            except OSError:  # another job has just bound it
                time.sleep(0.01)
                continue
            listener.listen(1024)
            _start_parent(listener, workflow)
    return None


def _start_parent(listener: socket.socket, workflow: str) -> None:
    subprocess.Popen(
        [sys.executable, "-P", "-m", __spec__.name, str(listener.fileno()), workflow],
        pass_fds=[listener.fileno()],
        start_new_session=True,
        preexec_fn=_leave_signals_to_children,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def _leave_signals_to_children() -> None:
    """A workflow that is told to end tells every process below it that handles the signal; the parent goes with it."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _surroundings() -> dict[str, Any]:
    """What a child takes over from the job's process."""
    umask = os.umask(0)
    os.umask(umask)
    return {"environment": dict(os.environ), "folder": os.getcwd(), "umask": umask, "argv": sys.argv, "path": sys.path}


def _child_of(parent: socket.socket) -> int | None:
    """A descriptor of the child that the parent has forked for this connection; None if the parent has ended."""
    parent.settimeout(_SECONDS_TO_START)
    _, descriptors, _, _ = socket.recv_fds(parent, 1, 1)
    parent.settimeout(None)
    return descriptors[0] if descriptors else None


def _forward_signals(child: int) -> dict[int, Any]:
    """Pass on to the process behind the descriptor `child` what this process is sent; return the handlers before."""

    def forward(number: int, _: object) -> None:
        _told.append(number)
        with suppress(ProcessLookupError):  # it has ended, and its status is on the way
            signal.pidfd_send_signal(child, number)

    return {number: signal.signal(number, forward) for number in _FORWARDED}


def _exit_like(status: int) -> NoReturn:
    """End this process as a process ended that has this status of waitpid(2)."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if number not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    os._exit(os.waitstatus_to_exitcode(status))


# In the parent


def serve(listener: socket.socket, workflow: str) -> Callable[[], NoReturn] | None:
    """Fork a child for each connection until the workflow ends or the code changes.

    Returns None then; in a child, the function that does the job, so that it runs outside this loop.
    """
    environment, name = dict(os.environ), listener.getsockname()
    ends = os.pidfd_open(int(workflow.split(":")[0]))
    imports = _warm_up()
    if not _alive(workflow) or _socket_name(workflow, environment) != name:
        return None
    safe = len(os.listdir("/proc/self/task")) == 1  # otherwise it turns every job away, and none starts another parent
    children: dict[int, tuple[int, socket.socket]] = {}  # by the child's pidfd: its pid and its job's connection
    jobs: dict[int, int] = {}  # by the connection's descriptor: the child's pidfd
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    poll.register(ends, select.POLLIN)
    while True:
        ready = [descriptor for descriptor, _ in poll.poll(_SECONDS_BETWEEN_CHECKS * 1000)]
        if ends in ready or not (ready or children or _socket_name(workflow, environment) == name):
            for pid, _ in children.values():
                _kill(pid)
            return None
        for descriptor in ready:
            if descriptor == listener.fileno():
                connection, _ = listener.accept()
                pid = os.fork() if safe and _same_user(connection) else None
                if pid == 0:
                    for other in (listener, *(job for _, job in children.values())):
                        other.close()
                    for other in (ends, *children):
                        os.close(other)
                    return lambda: _be_child(connection, imports)
                if pid is None:
                    connection.close()
                    continue
                child = os.pidfd_open(pid)
                children[child], jobs[connection.fileno()] = (pid, connection), child
                poll.register(child, select.POLLIN)
                poll.register(connection, select.POLLRDHUP)
                with suppress(OSError):  # the job's process has gone; the poll says so next
                    socket.send_fds(connection, [b"\0"], [child])
            elif descriptor in jobs:  # the job's process has gone
                _kill(children[jobs.pop(descriptor)][0])
                poll.unregister(descriptor)
            elif descriptor in children:
                pid, connection = children.pop(descriptor)
                poll.unregister(descriptor)
                os.close(descriptor)
                if jobs.pop(connection.fileno(), None) is not None:
                    poll.unregister(connection)
                _, status = os.waitpid(pid, 0)
                with suppress(OSError), connection:
                    connection.sendall(pickle.dumps(status))


def _warm_up() -> dict[str, str]:
    """Import what jobs import, and return the environment variables that the imports have set.

    Nothing is computed: a parent with threads of its own could not be forked safely.
    """
    before = dict(os.environ)
    os.environ |= _IMPORTING
    ours = [module.name for module in pkgutil.walk_packages(bulwark.__path__, "bulwark.", onerror=lambda _: None)]
    gc.disable()  # nothing that is imported here is ever thrown away
    for name in (*HEAVY, *(name for name in ours if not name.endswith("__main__") and not name.startswith(_LEFT_OUT))):
        with suppress(Exception):  # the job that needs it will say so
            importlib.import_module(name)
    gc.enable()
    gc.freeze()  # the collector would touch, and so copy, every page in every child
    return {name: value for name, value in os.environ.items() if name not in {**before, **_IMPORTING}}


def _be_child(connection: socket.socket, imports: Mapping[str, str]) -> NoReturn:
    """Do the one call that arrives on the connection, as a fresh process would.

    imports: the environment variables that the parent's imports have set.
    """
    process.die_with_parent()
    os.setsid()  # with what it starts it is one group, which the parent can kill
    with connection:
        _, streams, _, _ = socket.recv_fds(connection, 1, 3)
        call = _received(connection)
    if len(streams) != 3 or call is None:
        os._exit(1)
    os.environ.clear()
    os.environ.update({**call.pop("environment"), **imports})
    os.chdir(call.pop("folder"))
    os.umask(call.pop("umask"))
    sys.argv[:], sys.path[:] = call.pop("argv"), call.pop("path")
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    sys.stdout.reconfigure(line_buffering=os.isatty(1))
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()  # from the system, as `random` is; torch starts from one seed anyway
    try:
        log_to(call["log"])
        process.perform(call["function"], call["arguments"], call["sealing"])
    except SystemExit as error:
        process.leave(_status_of(error))
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        if isinstance(error, KeyboardInterrupt):  # Python ends by the signal itself, so that a shell stops, too
            sys.stdout.flush()
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
        process.leave(1)
    process.leave()


def _status_of(error: SystemExit) -> int:
    """What Python exits with: the number; 0 for nothing; 1, after printing it, for anything else."""
    if error.code is None or isinstance(error.code, int):
        return (error.code or 0) & 0xFF
    print(error.code, file=sys.stderr)
    return 1


def _kill(pid: int) -> None:
    """Kill a child that has not been waited for, with its process group once it has one."""
    for kill in (os.killpg, os.kill):
        with suppress(ProcessLookupError):
            kill(pid, signal.SIGKILL)


# On both sides


def _socket_name(workflow: str, environment: Mapping[str, str] = os.environ) -> bytes:
    """The abstract address of the parent for this workflow, environment, code and installed packages."""
    package = Path(bulwark.__file__).resolve().parent
    paths = [*sorted(package.rglob("*.py")), *(path for path in map(Path, site.getsitepackages()) if path.exists())]
    code = [(str(path), stat.st_mtime_ns, stat.st_size) for path in paths for stat in (path.stat(),)]
    variables = sorted((name, value) for name, value in environment.items() if name not in _VOLATILE)
    seen = (workflow, os.getuid(), sys.executable, sys.version, code, variables)
    return b"\0bulwark-" + hashlib.sha256(repr(seen).encode()).hexdigest().encode()


def _stat(pid: int | str) -> list[str]:
    """The fields of /proc/PID/stat behind the program's name: the state comes first."""
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()


def _alive(workflow: str) -> bool:
    pid, started = workflow.split(":")
    try:
        fields = _stat(pid)
    except OSError:
        return False
    return fields[0] != "Z" and fields[19] == started


def _same_user(connection: socket.socket) -> bool:
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return struct.unpack("3i", credentials)[1] == os.getuid()


def _received(connection: socket.socket) -> Any:
    """The object that the other side has sent, or None if it has gone."""
    with connection.makefile("rb") as file:
        try:
            return pickle.load(file)
        except (EOFError, ConnectionError, pickle.UnpicklingError):
            return None


def _main() -> None:
    listener = socket.socket(fileno=int(sys.argv[1]))
    child = serve(listener, sys.argv[2])
    if child is not None:
        child()
    os._exit(0)


if __name__ == "__main__":
    _main()
