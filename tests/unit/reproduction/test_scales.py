import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from rskd.config import validate_config
from rskd.reproduction.scales import SCALES, SmallModels


@pytest.mark.parametrize("name", SCALES)
def test_a_scale_is_a_valid_configuration(name: str):
    scale = SCALES[name]
    given = {"name": "students", "corpus": {**scale.config["corpus"], "source": {"kind": "python_docs"}}}
    teacher = {"model": "anything", **scale.config["teacher"]}
    config = validate_config({**scale.config, **given, "teacher": teacher})
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
        for architecture in (small.teacher, small.student)
    ]
    assert [round(size / 1e6, 1) for size in sizes] == [3.0, 0.6]
