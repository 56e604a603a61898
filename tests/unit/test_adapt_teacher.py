from pathlib import Path

from flows.adapt_teacher import ADAPTED, adaptation, with_adapted_teacher
from rskd.config import DistillConfig, load_config

DEMO = Path(__file__).parents[2] / "flows" / "configs" / "demo.yaml"


def _config(tiny_teacher_dir: Path, *overrides: str) -> DistillConfig:
    return load_config(DEMO, [f"teacher.model={tiny_teacher_dir}", "teacher.revision=null", *overrides])


def test_the_adapted_teacher_inherits_no_student_and_no_objective(tiny_teacher_dir: Path):
    config = _config(tiny_teacher_dir, "train.seed=7")
    assert config.student.num_layers == 4  # what a checkpoint cannot have
    [(name, spec)] = adaptation(config, steps=5, lr=1e-3).student_specs.items()
    assert name == ADAPTED
    assert (spec.student.init, spec.student.model, spec.student.num_layers) == (
        "checkpoint",
        str(tiny_teacher_dir.resolve()),
        None,
    )
    assert spec.objective.kind == "ce"
    assert (spec.train.steps, spec.train.lr, spec.train.min_lr, spec.train.seed) == (5, 1e-3, 1e-4, 7)


def test_the_distillation_to_compare_with_differs_in_its_teacher_alone(tiny_teacher_dir: Path, tmp_path: Path):
    config = _config(tiny_teacher_dir)
    other = with_adapted_teacher(config, str(tmp_path))
    assert (other.name, other.teacher.model) == ("demo-adapted", str(tmp_path))
    assert other.student_specs == config.student_specs
    assert other.cache_samplings == config.cache_samplings
