"""Submit a pretraining run to SLURM. ``python launcher/submit.py --help`` explains everything."""

import argparse
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from launcher import queue_checks
from launcher.cluster import ROOT, Cluster, read_cluster, script
from megatron_pixel.config.automatic import automatic
from megatron_pixel.config.command_line import describe, format_settings
from megatron_pixel.config.errors import UserError, exit_on_user_error
from megatron_pixel.config.loader import flatten, load_config
from megatron_pixel.config.schema import RunConfig
from megatron_pixel.config.validation import check_files
from megatron_pixel.planning.devices import DEVICES

DESCRIPTION = """\
Submit a pretraining run to SLURM, after looking for what would make it fail: settings and layout, datasets, the run's
folder, partition, nodes, GPUs, cores and time of the cluster. Nothing is submitted if anything is wrong.

examples:
  # what would be submitted, exactly; needs no SLURM here
  python launcher/submit.py --cluster launcher/clusters/32-gpus.yaml --config RECIPE --print

  # all checks, SLURM's own as well, and nothing else
  python launcher/submit.py --cluster my-cluster.yaml --config RECIPE --check

  # submit, with a setting of the cluster and one of the run changed
  python launcher/submit.py --cluster my-cluster.yaml --cluster.nodes 2 --config RECIPE --run.dir runs/two-nodes

Settings of the run are those of megatron_pixel/pretrain.py and stand behind --config."""


def main(words: Sequence[str] | None = None) -> None:
    """Parse, check, submit."""
    with exit_on_user_error():
        known, cluster, run_words = parse(sys.argv[1:] if words is None else words)
        config = load_config(known.config, run_words)
        check_run(config, cluster)
        run_words += choice_words(config, cluster)
        arguments = ["--config", str(Path(known.config).resolve()), *run_words]
        if known.print:
            sys.stdout.write(script(cluster, arguments))
            return
        check_now(config, cluster)
        folder, text = str(Path(config.run.dir).resolve()), script(cluster, arguments)
        answer = queue_checks.submit(text, folder, test_only=True)
        if known.check:
            print(f"nothing is wrong; SLURM: {answer.removeprefix('sbatch: ')}")
            return
        number = queue_checks.submit(text, folder).partition(";")[0]
        log = cluster.log.replace("%j", number)
        print(
            f"job {number}: {cluster.processes} tasks on {cluster.nodes} node(s), run {config.run.dir}\n"
            f"  the job      squeue --job {number}\n"
            f"  its output   tail -f {log}\n"
            f"  the run      python launcher/status.py {config.run.dir}\n"
            f"  save now, give back the nodes, go on later   scancel --batch --signal=USR1 {number}\n"
            f"  save and end                                 scancel --batch --signal=TERM {number}"
        )


def parse(words: Sequence[str]) -> tuple[argparse.Namespace, Cluster, list[str]]:
    """Options of this program, the cluster's settings, and the words for pretrain.py without its recipe."""
    parser = argparse.ArgumentParser(
        description=DESCRIPTION,
        usage="%(prog)s [--cluster FILE] [--cluster.KEY VALUE ...] --config RECIPE [--SECTION.KEY VALUE ...]",
        epilog="settings of the cluster, in the file without `cluster.`:\n"
        + format_settings(describe(Cluster, "cluster")),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", required=True, metavar="RECIPE", help="YAML recipe of the run")
    parser.add_argument("--cluster", metavar="FILE", type=Path, help="YAML file about the cluster")
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--print", action="store_true", help="show the batch script and submit nothing")
    action.add_argument("--check", action="store_true", help="make all checks and submit nothing")
    known, rest = parser.parse_known_args(words)
    ours: list[str] = []
    run: list[str] = []
    target = run
    for word in rest:
        if word.startswith("--"):
            target = ours if word.startswith("--cluster.") else run
        target.append(word)
    return known, read_cluster(known.cluster, ours), run


def check_run(config: RunConfig, cluster: Cluster) -> None:
    """Refuse a run that does not fit so many processes. Raises UserError."""
    from megatron_pixel.parallel.layout import check_layout

    check_layout(config, cluster.processes)


def choice_words(config: RunConfig, cluster: Cluster) -> list[str]:
    """Settings that are ``auto``, chosen for the cluster's GPUs where it names them; tells what was chosen.

    Raises:
        UserError: nothing fits.
    """
    if cluster.gpu is None or not automatic(config):
        return []
    from megatron_pixel.planning.choice import choose

    device, given = DEVICES[cluster.gpu], config.parallel.device_memory_gb
    device = device if given is None else replace(device, memory=given * 1e9)
    choice = choose(config, cluster.processes, cluster.tasks, device)
    print(f"auto: {choice.why}", file=sys.stderr)
    values = flatten(choice.config)
    return [word for name in automatic(config) for word in (f"--{name}", str(values[name]))]


def check_now(config: RunConfig, cluster: Cluster) -> None:
    """Refuse what can be known before the queue is waited for. Raises UserError."""
    from megatron_pixel.training.preflight import preflight

    if not queue_checks.available():
        raise UserError("no sbatch here: submit on a login node of the cluster, or look at the script with --print")
    queue_checks.check_queue(cluster)
    check_files(config)
    if cluster.dependency is None and cluster.array is None:
        queue_checks.check_running(str(Path(config.run.dir).resolve()))
        preflight(config)
    own = (ROOT / ".venv" / "bin" / "python").is_file() or shutil.which("python3")
    if cluster.container is None and cluster.python is None and not own:
        raise UserError("no python for the tasks: make setup creates .venv, or set cluster.python")


if __name__ == "__main__":
    main()
