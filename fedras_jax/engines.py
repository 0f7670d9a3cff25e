"""What runs the groups of a sweep: this process, a Ray cluster, or SLURM.

An engine is a function of tasks and options that yields each task as it ends. Every task starts
from its Specs and folders alone, so it may run in any process that sees the folders and the data.
"""

import contextlib
import dataclasses
import logging
import os
import platform
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from fedras_jax import results
from fedras_jax.errors import DivergedError, FedrasError, SpecError, StoppedError
from fedras_jax.options import Options
from fedras_jax.programs import Kept
from fedras_jax.run import run_group
from fedras_jax.spec import Spec

_LOG = logging.getLogger(__name__)


class Task(NamedTuple):
    """A group of runs, in a form that any process understands.

    Attributes:
      name: for people.
      specs: as JSON.
      folders: where each run goes.
      size: runs that the program is compiled for.
      bytes: memory that it is expected to take.
    """

    name: str
    specs: tuple[dict[str, Any], ...]
    folders: tuple[str, ...]
    size: int
    bytes: int


class Done(NamedTuple):
    """A task that has ended.

    Attributes:
      task: which.
      diverged: (folder, message) of every run that diverged.
      where: host and process, None where the task failed.
      error: why the task failed as a whole, None if it did not.
    """

    task: Task
    diverged: tuple[tuple[str, str], ...]
    where: str | None
    error: str | None


Engine = Callable[[Sequence[Task], Options], Iterator[Done]]


def work(task: Task, options: Options, kept: Kept | None = None) -> Done:
    """Run a task here: what is left of it, so that it can be tried again.

    Raises:
      FedrasError: as `run.run_group`.
    """
    options = dataclasses.replace(options, keep_states=False)
    runs = {folder: Spec.from_json(s) for folder, s in zip(task.folders, task.specs, strict=True)}
    left = {f: spec for f, spec in runs.items() if results.read_finished(f, spec) is None}
    diverged: list[tuple[str, str]] = []
    if left:
        found = run_group(
            list(left.values()), workdirs=list(left), options=options, size=task.size, kept=kept
        )
        pairs = zip(left, found, strict=True)
        diverged = [(folder, str(r)) for folder, r in pairs if isinstance(r, DivergedError)]
    return Done(task, tuple(diverged), f"{platform.node()}:{os.getpid()}", None)


def local(tasks: Sequence[Task], options: Options) -> Iterator[Done]:
    """One task after another, in this process, on all its devices.

    Raises:
      StoppedError: asked to stop.
    """
    kept = Kept()
    for i, task in enumerate(tasks):
        _stop_if_asked(options, len(tasks) - i)
        if options.progress:
            print(f"{task.name} of {len(tasks)}: {len(task.specs)} runs", flush=True)
        try:
            yield work(task, options, kept)
        except StoppedError:
            raise
        except FedrasError as e:
            yield _failed(task, e)


def ray(
    address: str | None = None, *, cpus: int = 1, gpus: float = 0.0, retries: int = 2
) -> Engine:
    """Tasks spread over a Ray cluster.

    A task that fails because its process or its machine does is tried again, and goes on from its
    last checkpoint. Its memory is reserved, so a machine takes as many as fit.

    Args:
      address: of a running cluster; None starts one on this machine.
      cpus: of a task; each is a CPU device of its own.
      gpus: of a task, which may be a fraction.
      retries: after the first try.

    Raises:
      SpecError: Ray is not installed, or there is no cluster at that address.
    """
    ray_ = _import("ray", "ray", "engine=ray")

    def engine(tasks: Sequence[Task], options: Options) -> Iterator[Done]:
        started = not ray_.is_initialized()
        if started:
            try:
                _knock(address)
                ray_.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
            except Exception as e:  # of many kinds, by version and by what is wrong
                reason = str(e).strip().split("\n")[0]
                raise SpecError(f"no Ray cluster at {address or 'this machine'}: {reason}") from e
        try:
            yield from _on_ray(ray_, tasks, options, cpus, gpus, retries)
        finally:
            if started:
                ray_.shutdown()

    return engine


def _knock(address: str | None) -> None:
    """Try a cluster's port, because Ray itself tries for minutes.

    Raises:
      OSError: nobody is there.
    """
    host, colon, port = (address or "").removeprefix("ray://").rpartition(":")
    if colon and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=10).close()


def _on_ray(
    ray_: Any, tasks: Sequence[Task], options: Options, cpus: int, gpus: float, retries: int
) -> Iterator[Done]:
    remote = ray_.remote(max_calls=1)(_in_a_process)  # XLA is given back with its process
    there = _elsewhere(options)
    have = ray_.cluster_resources()
    for name, wanted in (
        ("CPU", cpus),
        ("GPU", gpus),
        ("memory", max((t.bytes for t in tasks), default=0)),
    ):
        if wanted > have.get(name, 0):
            raise SpecError(
                f"a group wants {wanted:g} {name}, but the Ray cluster has {have.get(name, 0):g}: "
                "it would wait forever"
            )
    waiting = {
        remote.options(num_cpus=cpus, num_gpus=gpus, memory=task.bytes, max_retries=retries).remote(
            task, there, cpus, gpus
        ): task
        for task in tasks
    }
    while waiting:
        if options.stop():
            for ref in waiting:
                ray_.cancel(ref)
        _stop_if_asked(options, len(waiting))
        ended, _ = ray_.wait(list(waiting), timeout=1.0)
        for ref in ended:
            task = waiting.pop(ref)
            try:
                yield ray_.get(ref)
            except Exception as e:  # what a worker raised, or what Ray makes of its death
                yield _failed(task, e)


def slurm(folder: str, *, cpus: int = 1, gpus: int = 0, **parameters: Any) -> Engine:
    """Tasks as jobs of SLURM, through submitit.

    Args:
      folder: for submitit's logs, on a disk that all machines see.
      cpus, gpus: of a job.
      parameters: of `submitit.AutoExecutor.update_parameters`, such as timeout_min or
        slurm_partition; `cluster="local"` starts processes on this machine instead.

    Raises:
      SpecError: submitit is not installed.
    """
    submitit = _import("submitit", "slurm", "engine=slurm")
    cluster = parameters.pop("cluster", None)

    def engine(tasks: Sequence[Task], options: Options) -> Iterator[Done]:
        executor = submitit.AutoExecutor(folder=folder, cluster=cluster)
        there = _elsewhere(options)
        wanted = {"cpus_per_task": cpus, "gpus_per_node": gpus, "timeout_min": 24 * 60}
        jobs = []
        for task in tasks:
            gib = max(1, -(-task.bytes // 2**30))
            executor.update_parameters(**{**wanted, "mem_gb": gib, **parameters})
            jobs.append((task, executor.submit(_in_a_process, task, there, cpus, gpus)))
        for i, (task, job) in enumerate(jobs):
            while not job.done():
                if options.stop():
                    for _, other in jobs[i:]:
                        other.cancel(check=False)
                _stop_if_asked(options, len(jobs) - i)
                time.sleep(1)
            try:
                yield job.result()
            except Exception as e:  # what the job raised, or what SLURM makes of its end
                yield _failed(task, e)

    return engine


def _in_a_process(task: Task, options: Options, cpus: int, gpus: float) -> Done:
    """`work` in a fresh process, with a CPU device for each of its cores."""
    if 0 < gpus < 1:  # JAX would take three quarters of it
        os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", f"{0.9 * gpus:.3f}")
    import jax

    with contextlib.suppress(RuntimeError):  # devices that are there already stay
        jax.config.update("jax_num_cpu_devices", cpus)
    logging.getLogger("jax").setLevel(logging.WARNING)
    return work(task, options)


def _elsewhere(options: Options) -> Options:
    """Options for a process that is somewhere else, and that nobody watches."""
    data = options.data_dir and os.path.abspath(options.data_dir)
    return dataclasses.replace(options, data_dir=data, progress=False, stop=_never)


def _failed(task: Task, error: Exception) -> Done:
    cause = getattr(error, "cause", None) or error
    reason = str(cause).strip().split("\n")[-1] if isinstance(cause, FedrasError) else repr(cause)
    _LOG.warning("%s failed: %s", task.name, reason)
    return Done(task, (), None, reason)


def _stop_if_asked(options: Options, left: int) -> None:
    if options.stop():
        raise StoppedError(
            f"stopped with {left} groups to go, as asked: the same command goes on from their last "
            "checkpoints"
        )


def _never() -> bool:
    return False


def _import(module: str, extra: str, what: str) -> Any:
    try:
        return __import__(module)
    except ImportError as e:
        raise SpecError(
            f"{what} needs {module}: pip install 'fedras_jax[{extra}]', or leave the engine local"
        ) from e
