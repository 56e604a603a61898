"""Plan a stage before it works: what there is ─► numbers, the batch measured once ─► said, and kept with the outputs.

    Ray, or torch ─► Resources ─► rskd.plan ─► Plan ─► "plan: train ce: 8 workers × 1 GPU (…), micro_batch 16 (…)"
                     trial on the device ◄─┘     └───► <home>/plans/…, which a rerun takes its batch from

A trial is the stage's own work on so many windows, on one GPU, which may take `_SHARE` of the memory. Numbers depend on
the batch in their last bits, so what was measured is kept: a run that goes on gets the same again.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from rskd.config import RayConfig
from rskd.errors import ConfigError
from rskd.plan import Measure, Plan, Resources, largest_that_fits, record_plan, recorded_batch, resources_here
from rskd.progress import announce
from rskd.storage import Store

_SHARE = 0.9  # of a GPU's memory: the rest is for fragments, and for batches that need more than those of the trial

Trial = Callable[[int], object]  # does a stage's work on so many windows at once


def plan_stage(
    resolve: Callable[[Resources, Measure], Plan],
    there: Resources,
    ray: RayConfig,
    home: Store,
    *,
    of: Mapping[str, Any] | None = None,
    trial: Callable[[Plan], Callable[[], Trial]] | None = None,
) -> Plan:
    """The plan of a stage about to work on what is `there` (`resources`): `resolve` is that of `rskd.plan`.

    `of` is what a batch that fits depends on besides the GPU; `trial(plan)` gives what makes the trial in the process
    that runs it. Raises ConfigError for GPUs that are not there, and where not even one window fits.
    """
    measured: dict[str, Any] = {}

    def measure(cap: int, plan: Plan) -> int:
        _check_gpus(plan, there, ray)
        assert trial is not None
        needs = {**(of or {}), "cap": cap, "gpu": plan.gpu, "gpus": plan.gpus_per_worker}
        batch = recorded_batch(home, plan.stage, plan.student, needs)
        if batch is None:
            announce(f"plan: {plan.title}: looking for the largest batch that fits on the GPU")
            batch = _search(ray, trial(plan), cap, plan)
        measured.update(of=needs, batch=batch)
        return batch

    plan = resolve(there, measure)
    _check_gpus(plan, there, ray)
    record_plan(home, plan, measured or None)
    announce(f"plan: {plan.line}")
    return plan


def resources(config: RayConfig) -> Resources:
    """What Ray has, which runs; what this process has where it does not."""
    here = resources_here()
    if not config.enabled:
        return here
    import ray

    there = ray.cluster_resources()
    kinds = [name.removeprefix("accelerator_type:") for name in there if name.startswith("accelerator_type:")]
    return Resources(
        gpus=int(there.get("GPU", 0)),
        cores=int(there.get("CPU", 1)),
        gpu=here.gpu if config.address is None else ", ".join(sorted(kinds)),
        cores_per_thread=config.address is not None,
        threads=here.threads,
    )


def search(make_trial: Callable[[], Trial], cap: int, gpus: float) -> Iterator[int | None]:
    """Yields the largest batch that fits on this process's GPU, of which it takes so much; None where none does."""
    with _share_of_gpu(_SHARE * min(1.0, gpus)):
        try:
            found = largest_that_fits(make_trial(), cap)
        except torch.OutOfMemoryError:  # the model alone does not fit
            found = None
    yield found


@contextmanager
def _share_of_gpu(share: float) -> Iterator[None]:
    """Within it, torch runs out of memory beyond that share of the GPU; afterwards nothing of it is held."""
    if not torch.cuda.is_available():
        yield
        return
    torch.cuda.set_per_process_memory_fraction(share)
    try:
        yield
    finally:
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(1.0)


def _search(ray: RayConfig, make_trial: Callable[[], Trial], cap: int, plan: Plan) -> int:
    if ray.enabled:
        from rskd.jobs.on_ray import follow

        found = next(follow(search, make_trial, cap, plan.gpus_per_worker, gpus=plan.gpus_per_worker))
    else:
        found = next(search(make_trial, cap, plan.gpus_per_worker))
    if found is None:
        raise ConfigError(
            f"{plan.title}: not even one window fits on the GPU ({plan.gpu}): lower corpus.seq_len, or use a smaller "
            "model or a GPU with more memory"
        )
    return found


def _check_gpus(plan: Plan, there: Resources, ray: RayConfig) -> None:
    """ConfigError where this machine has fewer than are asked for: a task would wait for ever. A cluster may grow."""
    if ray.address is None and plan.reserved.gpus > there.gpus:
        workers, gpus = plan.key_of("workers"), plan.key_of("gpus")
        if plan.workers > 1:
            wanted = f"{workers}={plan.workers} with {gpus}={plan.gpus_per_worker:g}"
        else:
            wanted, workers = f"{gpus}={plan.gpus_per_worker:g}", gpus
        raise ConfigError(f"{wanted} but this machine has {there.gpus}: lower {workers}")
