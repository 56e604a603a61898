import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from rskd.config import validate_config
from rskd.reproduction.methods import METHODS, SIZES
from rskd.reproduction.scales import SCALES, SmallModels
from rskd.reproduction.tables import TABLES


@pytest.mark.parametrize("name", SCALES)
def test_a_scale_is_a_valid_configuration(name: str):
    scale = SCALES[name]
    given = {"name": "students", "corpus": {**scale.config["corpus"], "source": {"kind": "python_docs"}}}
    teacher = {"model": "anything", **scale.config["teacher"]}
    config = validate_config({**scale.config, **given, "teacher": teacher})
    methods = [METHODS[row.method] for table in scale.tables for row in TABLES[table].rows]
    if any(method.size for method in methods):
        assert len(scale.sizes or (scale.small.sizes if scale.small else ())) == len(SIZES)
    if scale.small is not None:
        validate_config({**scale.config, **given, "teacher": teacher, "train": dict(scale.small.train_teacher)})
        windows = config.corpus.max_windows
        assert windows is not None
        assert config.train.steps * config.train.global_batch <= 2 * windows  # about an epoch


def test_the_small_models_have_the_parameters_that_the_readme_says():
    small = SCALES["cpu-small"].small
    assert isinstance(small, SmallModels)
    sizes = [
        sum(p.numel() for p in LlamaForCausalLM(LlamaConfig(vocab_size=4096, **architecture)).parameters())
        for architecture in (small.teacher, small.sizes[0], small.student, *small.sizes[1:])
    ]
    assert [round(size / 1e6, 1) for size in sizes] == [3.0, 0.3, 0.6, 1.1, 1.7]
