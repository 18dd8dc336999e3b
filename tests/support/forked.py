"""Jobs of tests: processes of their own as ever, forked from one that has read torch once for all of them.

`python -m retro_demo` reads torch and itself for two seconds before it does anything, and the tests start
more than a hundred jobs. What is forked runs the same `__main__`, with the same words, environment, session
and log; only its modules are there already. Tests of how a job starts take `own_process`, and read them anew.
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

ENOUGH = 1_000_000  # bytes of a request: the environment of a job


class Forks:
    """The process that jobs are forked from, which is started for the first; it ends with this one."""

    held = False
    """whether a job stands still in its first moment, until SIGCONT"""
    DEVNULL = subprocess.DEVNULL

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None
        self.asking = threading.Lock()

    def Popen(self, command: list[str], *, stderr: IO[bytes], env: dict[str, str], **_same: Any) -> Forked:
        """As subprocess.Popen, for `python -m MODULE WORDS`."""
        assert command[:2] == [sys.executable, "-m"], command
        reading, writing = os.pipe()
        asked = json.dumps({"words": command[2:], "environment": env, "held": self.held}).encode()
        with self.asking:
            if self.process is None:
                self._start()
            socket.send_fds(self.ours, [asked], [stderr.fileno(), writing])
        os.close(writing)
        return Forked(os.fdopen(reading))

    def _start(self) -> None:
        self.ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, ENOUGH)
        # Python warns of forks beside threads: those of OpenBLAS, which end before a fork by themselves
        quiet = ["-W", "ignore::DeprecationWarning:__main__"]
        command = [sys.executable, *quiet, __file__, str(theirs.fileno())]
        path = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
        with theirs:
            self.process = subprocess.Popen(command, pass_fds=[theirs.fileno()], env=path)

    def close(self) -> None:
        if self.process is not None:
            self.ours.close()
            self.process.wait()


class Forked:
    """What is asked of a subprocess.Popen."""

    def __init__(self, told: IO[str]) -> None:
        self.told = told
        self.pid = int(told.readline())  # it leads a session of its own by now
        self.returncode: int | None = None

    def wait(self) -> int:
        if self.returncode is None:
            self.returncode = int(self.told.readline() or -signal.SIGKILL)
            self.told.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)


def serve(asking: socket.socket) -> None:
    """Fork a job for each request, until nobody can ask any more."""
    import retro_demo.cli.main  # noqa: F401  (with it torch, faiss and all that a job reads)

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the tests, which close this
    while True:
        asked, files, _, _ = socket.recv_fds(asking, ENOUGH, 2)
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        if not asked:
            return
        if os.fork() == 0:
            asking.close()
            _mind(json.loads(asked), *files)
        for file in files:
            os.close(file)


def _mind(asked: dict[str, Any], log: int, telling: int) -> None:
    """Start the job and tell its number, wait for its end and tell its exit code."""
    ready, go = os.pipe()
    if (child := os.fork()) == 0:
        os.setsid()
        os.close(telling)
        os.write(go, b".")
        _work(asked, log)
    os.read(ready, 1)
    os.write(telling, f"{child}\n".encode())
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os.write(telling, f"{code}\n".encode())
    os._exit(0)


def _work(asked: dict[str, Any], log: int) -> None:
    if asked["held"]:
        os.kill(os.getpid(), signal.SIGSTOP)
    code: Any = 1
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        nothing = os.open(os.devnull, os.O_RDWR)
        for old, new in ((nothing, 0), (nothing, 1), (log, 2)):
            os.dup2(old, new)
        os.environ.clear()
        os.environ.update(asked["environment"])
        module, *words = asked["words"]
        sys.argv = [module, *words]
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as ended:
        code = ended.code
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)


if __name__ == "__main__":
    sys.path.remove(str(Path(__file__).parent))  # of a script, before all others
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])  # as jobs/lifecycle.py starts a job
    serve(socket.socket(fileno=int(sys.argv[1])))
