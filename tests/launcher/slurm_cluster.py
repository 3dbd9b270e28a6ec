"""A real SLURM on this machine, for tests: munged, slurmctld and slurmds, without systemd, cgroups or files of root's.

All nodes are this host under other names, on the loopback; everything lies in one folder and ends with the tests.
"""

import contextlib
import getpass
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol")
SECONDS = 240.0
"""For anything to happen, on a machine however busy; limits of SLURM's own are longer, so that none decides a test."""
NODES = 2
NODE_NAMES = [f"node{i}" for i in range(1, NODES + 1)]
CPUS = 4
GPUS = 2
FOREIGN = (
    "SLURM_",
    "SBATCH_",
    "MASTER_",
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "MEGATRON_PIXEL_",
    "PMI_",
    "OMPI_",
    "OMP_",
    "PYTHON",
)
"""Variables that a job must not inherit from whoever runs the tests."""
CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=60
CredType=cred/munge
SlurmUser={user}
SlurmdUser={user}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=1,batch_sched_delay=0
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=60
MinJobAge=300
InactiveLimit=0
SlurmdTimeout=300
SlurmctldTimeout=300
OverTimeLimit=0
JobRequeue=1
GresTypes=gpu
MailProg=/bin/true
NodeName=DEFAULT CPUs={cpus} CoresPerSocket={cpus} RealMemory=4000 Gres=gpu:{gpus} State=UNKNOWN
"""


class SlurmCluster:
    """Daemons and commands of one cluster; :meth:`start` it first."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environ = {"SLURM_CONF": str(folder / "slurm.conf")}

    def start(self) -> None:
        """Start the daemons and wait until every node takes jobs."""
        folder = self.folder
        for name in ("munge", "state", "log", *(f"spool.node{i}" for i in range(1, NODES + 1))):
            (folder / name).mkdir(parents=True)
        (folder / "munge").chmod(0o711)
        key = folder / "munge" / "munge.key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o400)
        self._call(
            *("munged", "--force", f"--key-file={key}", f"--socket={folder}/munge/socket"),
            *(f"--pid-file={folder}/munge/munged.pid", f"--log-file={folder}/munge/munged.log"),
            *(f"--seed-file={folder}/munge/seed", "--num-threads=2"),
        )
        host = socket.gethostname().partition(".")[0]
        port, *ports = free_ports(NODES + 1)
        text = CONFIGURATION.format(host=host, port=port, folder=folder, user=getpass.getuser(), cpus=CPUS, gpus=GPUS)
        for i, own in enumerate(ports, start=1):
            text += f"NodeName=node{i} NodeHostname={host} NodeAddr=127.0.0.1 Port={own}\n"
        every = f"Nodes=node[1-{NODES}] State=UP OverSubscribe=NO"
        text += f"PartitionName=test {every} Default=YES MaxTime=2:00:00 PriorityTier=1 GraceTime=600\n"
        text += f"PartitionName=urgent {every} PriorityTier=2 PreemptMode=OFF\n"
        (folder / "slurm.conf").write_text(text)
        # Any file will do for a GPU that is only counted.
        (folder / "gres.conf").write_text(f"Name=gpu File={folder}/gpu[0-{GPUS - 1}]\n")
        for i in range(GPUS):
            (folder / f"gpu{i}").touch()
        self._call("slurmctld")
        for i in range(1, NODES + 1):
            self._call("slurmd", "-N", f"node{i}")
        wait_until(lambda: self.idle() == NODE_NAMES, self.logs)

    def idle(self) -> list[str]:
        """Nodes that wait for jobs."""
        return sorted(set(self._call("sinfo", "-h", "-N", "-t", "idle", "-o", "%N").split()))

    def end_jobs(self) -> None:
        """End all jobs at once: nobody needs what they would write before they end."""
        with contextlib.suppress(AssertionError, subprocess.SubprocessError):
            if self._call("squeue", "-h"):
                self._call("scancel", "--signal=KILL", "--full", f"--user={getpass.getuser()}")
                self._call("scancel", f"--user={getpass.getuser()}")
                wait_until(lambda: not self._call("squeue", "-h"), str, 10)

    def stop(self) -> None:
        """End all jobs, then the daemons."""
        self.end_jobs()
        for file in (*self.folder.glob("slurm*.pid"), self.folder / "munge" / "munged.pid"):
            with contextlib.suppress(OSError, ValueError):
                os.kill(int(file.read_text()), signal.SIGKILL)

    def submit(self, *words: str | Path, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> str:
        """``sbatch --parsable`` with these words; the number of the job."""
        return self._call("sbatch", "--parsable", *map(str, words), env=env, cwd=cwd).strip().partition(";")[0]

    def call(self, *words: str) -> str:
        """What one of SLURM's commands prints."""
        return self._call(*words)

    def run(self, *words: str, cwd: Path) -> str:
        """What a command prints that waits for its job."""
        return self._call(*words, cwd=cwd)

    def job(self, number: str) -> dict[str, str]:
        """What ``scontrol show job`` tells, by name; of an array only its first task."""
        told = self._call("scontrol", "--oneliner", "show", "job", number)
        return dict(re.findall(r"(\S+?)=(\S*)", told.splitlines()[0]))

    def goes_on(self, number: str, restarts: int = 1) -> None:
        """Until a job that was requeued runs again.

        By itself it waits until the credentials of its former life have expired; those of a busy machine must not do so
        soon. A node takes new ones that are younger, counted in whole seconds, than the end of that life.
        """

        def runs() -> bool:
            job = self.job(number)
            if int(job["Restarts"]) < restarts:
                return False
            if job["JobState"] == "PENDING":
                time.sleep(2)
                with contextlib.suppress(ClusterError):  # it has gone on by itself meanwhile
                    self._call("scontrol", "update", f"JobId={number}", "StartTime=now")
                return False
            return job["JobState"] != "COMPLETING"

        wait_until(runs, lambda: f"{self.job(number)}\n{self.logs()}")

    def wait(self, number: str, *states: str) -> dict[str, str]:
        """Until the job is in one of ``states``, by default any that lasts.

        Raises:
            AssertionError: the time is up; with what SLURM and the daemons say.
        """
        wanted = states or ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY")
        wait_until(lambda: self.job(number)["JobState"] in wanted, lambda: f"{self.job(number)}\n{self.logs()}")
        return self.job(number)

    def logs(self) -> str:
        """The last lines of every daemon's log."""
        parts = []
        for file in sorted((self.folder / "log").glob("*.log")):
            parts += [f"--- {file.name}", *file.read_text(errors="replace").splitlines()[-25:]]
        return "\n".join(parts)

    def _call(
        self, *words: str, env: Mapping[str, str] | None = None, cwd: Path | None = None, seconds: float = SECONDS
    ) -> str:
        clean = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
        clean["PATH"] = f"{clean['PATH']}:/usr/sbin:/sbin"
        done = subprocess.run(
            words,
            capture_output=True,
            text=True,
            timeout=seconds,
            cwd=cwd,
            env={**clean, **self.environ, **(env or {})},
        )
        if done.returncode:
            raise ClusterError(f"{' '.join(words)}: status {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout


class ClusterError(AssertionError):
    """One of SLURM's commands failed; with what it said."""


def why_not() -> str | None:
    """Why no cluster can be started here; None where it can."""
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    missing = [name for name in PROGRAMS if shutil.which(name, path=path) is None]
    if missing:
        return f"no {', '.join(missing)}: SLURM is not installed; as root: bash launcher/system_packages.sh"
    return None


def wait_until(condition: Callable[[], bool], told: Callable[[], str], seconds: float = SECONDS) -> None:
    """Look every 50 ms; AssertionError with what ``told`` returns when the time is up."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"{seconds:g} s were up\n{told()}")
        time.sleep(0.05)


def free_ports(count: int) -> list[int]:
    """Ports below those that the kernel gives to outgoing connections."""
    found: list[int] = []
    start = 20_000 + secrets.randbelow(8_000)
    for port in range(start, start + 1_000):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            found.append(port)
        if len(found) == count:
            return found
    raise AssertionError("no free ports")
