"""One of two ranks stops and the other waits for it; in a file of its own, as torch is imported before time counts."""

import os
import signal
import time

import torch.distributed as dist

from tests.distributed.harness import sign_of_life


def meet_and_stop() -> None:
    dist.init_process_group("gloo")
    sign_of_life()
    if os.environ["RANK"] == "1":
        stop_and_never_return()
    dist.barrier()


def stop_and_never_return() -> None:
    """Woken up to write its stack, a rank may come some way before it does so, but not out of here."""
    os.kill(os.getpid(), signal.SIGSTOP)
    while True:
        time.sleep(60)
