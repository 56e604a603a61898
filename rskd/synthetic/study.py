"""The whole study: the three parts of Figure 2 ─► Findings ─► synthetic.json and synthetic.html.

The classification tasks are run for several seeds, each with its own data, weights and draws, for standard errors.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch

from rskd.evaluation.calibration import ReliabilityBins
from rskd.progress import progress_bar
from rskd.storage import Store
from rskd.synthetic.calibration_study import Answers, train_all
from rskd.synthetic.findings import Calibration, Findings, Settings
from rskd.synthetic.mean import Mean
from rskd.synthetic.methods import Method, sparse_methods
from rskd.synthetic.page import render
from rskd.synthetic.tasks import GaussianClasses, Images, Task
from rskd.synthetic.zipf import FIGURE_RANKS, Estimate, estimate, zipf_log_probs, zipf_methods

ZIPF_VOCABULARY, ZIPF_TOP_K, ZIPF_SAMPLES = 100_000, 20, 22  # the paper's
# K, and the rounds that give about as many unique tokens: of random, of systematic sampling.
TARGETS = {"gaussian": (3, 7, 5), "digits": (2, 4, 4), "cifar100": (7, 25, 15)}


def run_study(settings: Settings, out: str) -> dict[str, Any]:
    """Run the study and write both files into the folder `out`; returns what synthetic.json holds, and their URIs.

    Raises ConfigError for settings out of range, a folder that cannot be written, CIFAR-100 files that are not there.
    """
    store = Store(out)
    store.check_writable("--out")
    images = Images.cifar100(settings.cifar100) if settings.cifar100 else Images.digits()
    tasks: dict[str, Callable[[int], Task]] = {
        "gaussian": lambda seed: GaussianClasses.make(torch.Generator().manual_seed(seed)),
        "cifar100" if settings.cifar100 else "digits": lambda seed: images,
    }
    findings = Findings(
        settings=settings,
        zipf_probabilities=zipf_log_probs(ZIPF_VOCABULARY).exp()[:FIGURE_RANKS].tolist(),
        zipf=_estimate_all(settings.rounds),
        calibration={name: _calibrate(name, make_task, settings) for name, make_task in tasks.items()},
    )
    result = {"settings": asdict(settings), "zipf": _plain(findings.zipf), **_plain(findings.calibration)}
    store.write("synthetic.json", json.dumps(result, indent=1, default=str).encode())
    store.write("synthetic.html", render(findings).encode())
    return result | {"report": f"{store.uri}/synthetic.html", "results": f"{store.uri}/synthetic.json"}


def _estimate_all(rounds: int) -> dict[str, Estimate]:
    log_probs = zipf_log_probs(ZIPF_VOCABULARY)
    methods = zipf_methods(k=ZIPF_TOP_K, num_samples=ZIPF_SAMPLES, seed=0)
    with progress_bar("zipf: rounds", rounds * len(methods)) as advance:
        return {
            name: estimate(log_probs, method, k=ZIPF_TOP_K, rounds=rounds, advance=advance)
            for name, method in methods.items()
        }


def _calibrate(name: str, make_task: Callable[[int], Task], settings: Settings) -> dict[str, Calibration]:
    k, random_rounds, systematic_rounds = TARGETS[name]

    def methods(seed: int) -> dict[str, Method]:
        sparse = sparse_methods(k=k, random_rounds=random_rounds, systematic_rounds=systematic_rounds, seed=seed)
        return {"ce": Method("ce"), **sparse, "full_kd": Method("full_kd")}

    models = 1 + len(methods(0))
    with progress_bar(f"{name}: training steps", settings.seeds * settings.steps * models) as advance:
        runs: list[dict[str, Answers]] = [
            train_all(make_task(seed), methods(seed), steps=settings.steps, seed=seed, advance=advance)
            for seed in range(settings.seeds)
        ]
    return {model: summarise([run[model] for run in runs], [run["full_kd"] for run in runs]) for model in runs[0]}


def summarise(runs: Sequence[Answers], full_kd: Sequence[Answers]) -> Calibration:
    """One method's models over the seeds, beside full KD's of the same seeds."""
    bins = ReliabilityBins()
    for run in runs:
        bins.add(run.confidence, run.correct)
    unique = [run.unique_tokens for run in runs if run.unique_tokens is not None]
    return Calibration(
        accuracy=Mean.of([run.accuracy for run in runs]),
        ece=Mean.of([run.ece for run in runs]),
        ece_above_full_kd=Mean.of([run.ece - full.ece for run, full in zip(runs, full_kd, strict=True)]),
        overconfidence=Mean.of([run.overconfidence for run in runs]),
        loss=Mean.of([run.loss for run in runs]),
        unique_tokens=sum(unique) / len(unique) if unique else None,
        reliability=bins.to_dict(),
    )


def table_rows(result: Mapping[str, Any]) -> dict[str, str]:
    """What a terminal shows of the result of `run_study`: a row for each method and task."""

    def text(mean: Mapping[str, float], sign: str = "") -> str:
        return f"{100 * mean['value']:{sign}.2f} ± {100 * mean['error']:.2f} %"

    rows = {
        f"zipf: {name}": f"bias of the top {ZIPF_TOP_K} {text(found['head_bias'], '+')}"
        for name, found in result["zipf"].items()
    }
    for task in TARGETS.keys() & result.keys():
        rows |= {f"{task}: {name}": f"ECE {text(found['ece'])}" for name, found in result[task].items()}
    return rows | {"report": result["report"]}


def _plain(found: Mapping[str, Any]) -> dict[str, Any]:
    """Data classes, however deep, as dictionaries."""
    return {name: _plain(value) if isinstance(value, Mapping) else asdict(value) for name, value in found.items()}
