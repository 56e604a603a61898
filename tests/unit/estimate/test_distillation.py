from pathlib import Path

import pytest
from made_caches import make_head, write_cache
from made_corpora import write_corpus

from rskd import tracking
from rskd.cache.inspection import inspect
from rskd.config import PlannedTeacher, SamplingConfig, validate_config
from rskd.errors import ConfigError, MissingOutputError
from rskd.estimate import (
    UNIQUE_TOKENS,
    break_even,
    estimate,
    predicted_costs,
    probe,
    teacher_tokens_per_s,
)
from rskd.models.load import num_parameters
from rskd.plan import Plan, plan_student, plan_teacher, resources_here


def make_config(root: Path, teacher: Path, /, **sections):
    return validate_config(
        {
            "name": "tiny",
            "storage": {"root": str(root)},
            "corpus": {"source": {"kind": "python_docs"}, "seq_len": 100, "windows_per_part": 8},
            "teacher": {"model": str(teacher), "threads_per_worker": 2},
            **sections,
        }
    )


@pytest.mark.parametrize(
    ("sampling", "unique", "bytes_per_token"),
    [
        ({"method": "random", "num_samples": 12}, 6.22, 14.02),
        ({"method": "random", "num_samples": 50}, 17.48, 35.11),
        ({"method": "systematic", "num_samples": 22}, 10.70, 21.71),
        ({"method": "systematic", "num_samples": 22, "layout": "compact"}, 10.70, 18.74),
        ({"method": "systematic", "num_samples": 50}, 19.49, 37.52),
        ({"method": "systematic", "num_samples": 22, "statistics": ["entropy", "top1"]}, 10.70, 21.71 + 1.74 + 1.45),
        ({"method": "top_k", "k": 12}, 12, 39.66),
        ({"method": "top_k", "k": 50}, 50, 151.80),
    ],
)
def test_defaults_are_near_what_the_storage_benchmark_measured(sampling, unique: float, bytes_per_token: float):
    found_unique, found_bytes = predicted_costs(SamplingConfig(**sampling), UNIQUE_TOKENS)
    assert found_unique == pytest.approx(unique, rel=0.03)
    assert found_bytes == pytest.approx(bytes_per_token, rel=0.06)


def test_at_another_temperature_unique_tokens_are_at_most_the_rounds():
    unique, num_bytes = predicted_costs(SamplingConfig(method="random", num_samples=50, temperature=0.8), UNIQUE_TOKENS)
    assert unique == 50
    assert num_bytes > 4 * unique  # float32 weights, where at temperature 1 there are counts


def test_speed_scales_with_workers_and_size():
    config = PlannedTeacher(model="m", threads_per_worker=2, workers=1, gpus_per_worker=0, batch_windows=8)
    one = teacher_tokens_per_s(config, 135_000_000)
    assert 150 < one < 250  # SmolLM2-135M on two cores
    assert teacher_tokens_per_s(config.model_copy(update={"workers": 3}), 135_000_000) == pytest.approx(3 * one)
    assert teacher_tokens_per_s(config.model_copy(update={"gpus_per_worker": 1}), 135_000_000) > 1000 * one


def test_the_whole_plan(tmp_path: Path, tiny_teacher_dir: Path):
    config = make_config(
        tmp_path,
        tiny_teacher_dir,
        samplings={"a": {"num_samples": 20}, "b": {"method": "top_k", "k": 5}},
        train={"steps": 10, "global_batch": 4},
        students={"s": {"sampling": "a"}},
    )
    plan = estimate(config, tokens=2000)
    assert plan["corpus"] == {"tokens": 2000, "windows": 20, "parts": 3}
    unknown = dict.fromkeys(("tokens_per_s", "seconds", "core_seconds", "gpu_seconds", "money"))
    memory = plan["students"]["s"].pop("memory")
    assert memory["full"]["state_bytes"] == memory["none"]["state_bytes"] == 16 * memory["parameters"]  # one worker
    assert plan["scale"]["files"] == 2 * 3 * (1 + 2)
    assert plan["students"] == {"s": {"tokens": 4000, "epochs": 2.0, "source": "default"} | unknown}
    assert list(tmp_path.iterdir()) == []  # no database, no experiment
    assert plan["caches"]["b"] == {
        "bytes": 34_500,
        "bytes_per_token": 17.25,
        "unique_per_token": 5.0,
        "source": "default",
    }
    assert plan["teacher"]["seconds"] == pytest.approx(2000 / plan["teacher"]["tokens_per_s"])


def no_gpu(cap: int, plan: Plan) -> int:
    """The batch of a plan on a GPU: 8, as on the CPU, or what a step has."""
    return min(cap, 8)


def test_what_was_measured_is_used_for_the_same_configuration_alone(tmp_path: Path, tiny_teacher_dir: Path):
    def make(workers: int = 1, **changed):
        teacher = {"model": str(tiny_teacher_dir), "workers": workers}
        return make_config(
            tmp_path, tiny_teacher_dir, teacher=teacher, train={"steps": 10, "global_batch": 4} | changed
        )

    config = make()
    with tracking.stage(config, "cache", planned=plan_teacher(config, resources_here(), no_gpu).params) as run:
        run.metrics({"tokens_per_s": 500.0})
    planned = plan_student(config, "default", resources_here(), no_gpu).params
    with tracking.stage(config, "train", "default", planned) as run:
        for step, speed in enumerate((1.0, 40.0, 50.0)):
            run.metrics({"tokens_per_s": speed}, step)
    write_cache(
        config.cache_uri("default"), head=make_head(sampling__statistics=[], teacher__model=str(tiny_teacher_dir))
    )
    plan = estimate(config, tokens=2000)
    assert plan["teacher"] == {
        "tokens_per_s": 500.0,
        "seconds": 4.0,
        "core_seconds": 8.0,  # two threads
        "gpu_seconds": 0.0,
        "money": None,
        "source": "measured",
    }
    assert plan["students"]["default"]["seconds"] == 100.0
    found = inspect(config.cache_uri("default"))
    assert plan["caches"]["default"]["bytes"] == round(2000 * found["bytes_per_token"])
    assert estimate(make(steps=20), tokens=2000)["students"]["default"]["seconds"] == 200.0
    other = estimate(make(workers=2, precision="float32"), tokens=2000)
    assert (other["teacher"]["source"], other["students"]["default"]["source"]) == ("default", "default")
    sampled = estimate(config.model_copy(update={"sampling": SamplingConfig(num_samples=50)}), tokens=2000)
    assert sampled["caches"]["default"]["source"] == "default"


def test_teacher_and_students_cost_what_they_reserve(tmp_path: Path, tiny_teacher_dir: Path):
    config = make_config(
        tmp_path,
        tiny_teacher_dir,
        teacher={"model": str(tiny_teacher_dir), "workers": 2, "threads_per_worker": 3},
        train={"steps": 10, "global_batch": 4, "workers": 2, "gpus_per_worker": 1, "threads_per_worker": 4},
        costs={"price_per_core_hour": 1.2, "price_per_gpu_hour": 3.6},
    )
    with tracking.stage(config, "cache", planned=plan_teacher(config, resources_here(), no_gpu).params) as run:
        run.metrics({"tokens_per_s": 500.0})
    planned = plan_student(config, "default", resources_here(), no_gpu).params
    with tracking.stage(config, "train", "default", planned) as run:
        run.metrics({"tokens_per_s": 40.0})
    plan = estimate(config, tokens=5000)
    teacher, student = plan["teacher"], plan["students"]["default"]
    assert (teacher["seconds"], teacher["core_seconds"], teacher["gpu_seconds"]) == (10.0, 60.0, 0.0)
    assert teacher["money"] == pytest.approx(0.02)
    assert (student["seconds"], student["core_seconds"], student["gpu_seconds"]) == (100.0, 800.0, 200.0)
    assert student["money"] == pytest.approx(800 / 3600 * 1.2 + 200 / 3600 * 3.6)


@pytest.mark.parametrize(
    ("steps", "kinds", "students", "epochs", "online"),
    [
        ([50], ["sparse_kd"], 1, 1.0, 20.0),  # 20,000 tokens, two epochs: one student pays
        ([10], ["sparse_kd"], 3, 1.0, 4.0),  # 4,000: two students run the teacher over less than the corpus
        ([25], ["sparse_kd"], 2, 1.0, 10.0),  # one epoch: as dear as the cache, two students pay
        ([10, 20, 99], ["sparse_kd", "sparse_kd", "ce"], 2, 0.5, 12.0),  # 6,000 on average
    ],
)
def test_from_where_on_a_cache_pays(
    tmp_path: Path,
    tiny_teacher_dir: Path,
    steps: list[int],
    kinds: list[str],
    students: int,
    epochs: float,
    online: float,
):
    config = make_config(
        tmp_path,
        tiny_teacher_dir,
        train={"global_batch": 4},
        students={
            f"s{n}": {"objective": {"kind": kind}, "train": {"steps": count}}
            for n, (count, kind) in enumerate(zip(steps, kinds))
        },
        costs={"price_per_core_hour": 3600},
    )
    found = break_even(config, tokens=10_000, tokens_per_s=1000.0)
    assert found is not None
    assert (found["students"], found["epochs"]) == (students, epochs)
    assert found["cached"] == {"seconds": 10.0, "core_seconds": 20.0, "gpu_seconds": 0.0, "money": 20.0}
    assert found["online"] == {"seconds": online, "core_seconds": 2 * online, "gpu_seconds": 0.0, "money": 2 * online}


def test_without_students_of_a_cache_there_is_nothing_to_compare(tmp_path: Path, tiny_teacher_dir: Path):
    config = make_config(tmp_path, tiny_teacher_dir, objective={"kind": "full_kd"})
    assert break_even(config, tokens=10, tokens_per_s=1.0) is None


def test_tied_weights_count_once(tiny_teacher_dir: Path):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_teacher_dir)
    assert num_parameters(str(tiny_teacher_dir)) == sum(p.numel() for p in model.parameters())


def test_needs_a_teacher_and_a_number_of_tokens(tmp_path: Path, tiny_teacher_dir: Path):
    with pytest.raises(ConfigError, match="correct teacher"):
        estimate(make_config(tmp_path, tmp_path / "nowhere"), tokens=10)
    with pytest.raises(MissingOutputError, match="rskd pack"):
        estimate(make_config(tmp_path, tiny_teacher_dir))


def test_a_probe_fits_the_unique_tokens_of_caches_that_do_not_exist(tmp_path: Path, tiny_teacher_dir: Path):
    config = make_config(
        tmp_path,
        tiny_teacher_dir,
        samplings={"ours": {"num_samples": 20}, "theirs": {"method": "random"}, "top_k": {"method": "top_k", "k": 5}},
    )
    with pytest.raises(MissingOutputError, match="rskd pack"):
        probe(config, windows=2)
    write_corpus(config)
    found = probe(config, windows=100)  # more than there are
    plan = estimate(config)["caches"]
    assert {name: cache["source"] for name, cache in plan.items()} == {
        "ours": "fitted",
        "theirs": "fitted",
        "top_k": "default",
    }
    assert plan["ours"]["unique_per_token"] == pytest.approx(found["systematic"].law.unique_tokens(20))
    assert plan["theirs"]["unique_per_token"] == pytest.approx(found["random"].law.unique_tokens(22))
    assert "rounds against unique tokens" in Path(config.home, "unique_tokens.html").read_text().lower()
    other = config.model_copy(update={"corpus": config.corpus.model_copy(update={"seq_len": 50})})
    assert estimate(other, tokens=2000)["caches"]["ours"]["source"] == "default"
