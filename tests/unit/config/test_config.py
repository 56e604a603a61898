"""The configuration: what is inherited, what is refused, and that each refusal is one line."""

import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from rskd.config import DistillConfig, SamplingConfig, load_config, validate_config
from rskd.config.distillation import merge
from rskd.config.section import _leaves
from rskd.errors import ConfigError

MINIMAL = {"name": "n", "corpus": {"source": {"kind": "python_docs"}}, "teacher": {"model": "m"}}


def test_only_name_source_and_teacher_have_no_default() -> None:
    config = validate_config(MINIMAL)
    assert config.cache_samplings == {"default": SamplingConfig(method="systematic", num_samples=22)}
    assert list(config.student_specs) == ["default"]
    for key in MINIMAL:
        with pytest.raises(ConfigError, match=rf"{key}.*missing"):
            validate_config({k: v for k, v in MINIMAL.items() if k != key})


def test_students_inherit_the_top_level_sections_key_by_key() -> None:
    config = validate_config(
        MINIMAL
        | {
            "train": {"steps": 7, "lr": 1e-3, "min_lr": 0.0},
            "objective": {"ce_weight": 0.1},
            "students": {"a": {"train": {"lr": 2e-3}}, "b": {"objective": {"ce_weight": 0.3}}},
        }
    )
    a, b = config.student_specs["a"], config.student_specs["b"]
    assert (a.train.steps, a.train.lr, a.objective.ce_weight) == (7, 2e-3, 0.1)
    assert (b.train.steps, b.train.lr, b.objective.ce_weight) == (7, 1e-3, 0.3)


def test_the_only_sampling_is_the_default_students() -> None:
    config = validate_config(MINIMAL | {"samplings": {"many": {"num_samples": 50}}})
    assert config.student_specs["default"].sampling == "many"


def _corpus(**settings: object) -> dict:
    return {"corpus": {"source": {"kind": "jsonl", "uri": "a.jsonl"}} | settings}


@pytest.mark.parametrize(
    "extra",
    [{}, {"samplings": {"a": {}, "b": {"method": "top_k", "k": 5}}, "students": {"s": {"sampling": "b"}}}],
)
def test_survives_the_round_trip_of_a_prefect_form(extra: dict) -> None:
    config = validate_config(MINIMAL | extra)
    assert DistillConfig.model_validate(config.model_dump()) == config
    assert DistillConfig.model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"train": {"stepz": 1}}, "train.stepz: unknown key"),
        ({"sampling": {"temperature": 0.8}}, "temperature=0.8 is not used by systematic"),
        ({"sampling": {"method": "top_k"}}, "top_k needs k"),
        ({"sampling": {"method": "top_p", "k": 5}}, "top_p needs p"),
        ({"sampling": {"method": "top_k", "k": 5, "num_samples": 50}}, "num_samples=50 is not used by top_k"),
        ({"sampling": {"method": "top_k", "k": 5, "layout": "compact"}}, "layout compact stores counts"),
        ({"sampling": {"method": "random", "temperature": 0.8, "layout": "compact"}}, "layout compact stores counts"),
        ({"sampling": {"num_samples": 5}, "samplings": {"a": {}}}, "exclude each other"),
        ({"samplings": {"a/b": {}}}, "'a/b' cannot be a name"),
        (_corpus(loss_on="all"), "loss_on='all' is not used by kind text: remove it"),
        (_corpus(chat_template="t.jinja"), "chat_template='t.jinja' is not used by kind text: remove it"),
        ({"corpus": {"kind": "chat", "source": {"kind": "python_docs"}}}, "kind chat reads jsonl, parquet or hf, not"),
        (_corpus(kind="chat", bos="document"), "bos=document is not used by kind chat, whose template writes the BOS"),
        (_corpus(kind="talk"), "corpus.kind"),
        ({"students": {"it's": {}}}, '"it\'s" cannot be a name'),
        ({"students": {"x" * 65: {}}}, "at most 64"),
        ({"name": "teachers"}, "name: teachers is taken"),
        ({"name": "mlflow.db"}, "name: mlflow.db is taken"),
        ({"train": {"steps": True}}, "train.steps: true is not a number"),
        ({"train": {"lr": False}}, "train.lr: false is not a number"),
        ({"train": {"betas": [True, 0.9]}}, "train.betas: [true, 0.9] is not a number"),
        ({"train": {"betas": [0.9, 1.0]}}, "train.betas.1: input should be less than 1, not 1.0"),
        ({"train": {"betas": [-0.1, 0.9]}}, "train.betas.0: input should be greater than or equal to 0, not -0.1"),
        ({"train": {"lr": "nan"}}, "train.lr: input should be a finite number, not 'nan'"),
        ({"train": {"steps": "many"}}, "train.steps: input should be a valid integer"),
        ({"train": {"steps": 2.5}}, "train.steps: input should be a valid integer"),
        ({"teacher": {"model": "m", "revision": 12}}, "teacher.revision: input should be a valid string, not 12: put"),
        ({"teacher": {"model": "m", "engine": "vllm", "engine_args": {"a": float("inf")}}}, "engine_args.a: inf is no"),
        ({"ce_weight": 0.1}, "ce_weight: unknown key, write objective.ce_weight"),
        (
            {"objective": {"ce_weight": 0.1}, "students": {"ce": {"objective": {"kind": "ce"}}, "kd": {}}},
            "remove it from objective at the top level, and give it to the students that use it",
        ),
        ({"students": {"s": {"sampling": "absent"}}}, "'absent' is not in samplings"),
        ({"students": {}}, "is empty"),
        ({"objective": {"kind": "ce", "ce_weight": 0.5}}, "ce_weight=0.5 is not used by objective ce"),
        ({"student": {"preset": "1b", "model": "x"}}, "exclude each other"),
        ({"student": {"init": "teacher_layers"}}, "needs num_layers"),
        ({"train": {"workers": 9, "global_batch": 8}}, "workers=9 exceed global_batch=8"),
        (
            {"objective": {"impl": "triton"}, "train": {"gpus_per_worker": 0}},
            "impl=triton of student default needs a GPU",
        ),
        (
            {"teacher": {"model": "m", "batch_windows": 0}},
            "batch_windows: input should be greater than or equal to 1, or auto, not 0",
        ),
        (
            {"train": {"workers": "many"}},
            "train.workers: input should be a valid integer, unable to parse string as an integer, or auto, not 'many'",
        ),
        ({"evaluate": {"gpus": -1}}, "evaluate.gpus: input should be greater than or equal to 0, or auto, not -1"),
        ({"objective": {"impl": "triton", "divergence": "mse"}}, "impl=triton is for forward KL"),
        ({"objective": {"kind": "full_kd", "residual": "ghost"}}, "residual='ghost' is not used by objective full_kd"),
        ({"objective": {"kind": "ce", "divergence": "l1"}}, "divergence='l1' is not used by objective ce"),
        ({"objective": {"residual": "ghost"}}, "residual=ghost of student default is for top_k and top_p"),
        (
            {"sampling": {"method": "top_k", "k": 5}, "objective": {"residual": "label", "divergence": "mse"}},
            "residual='label' is not used by divergence mse",
        ),
        ({"objective": {"divergence": "js"}}, "objective.divergence"),
        ({"name": "../escape"}, "name"),
        ({"promotion": {"margins": {"perplexity": 0.1}}}, "promotion.margins.perplexity: unknown key"),
        ({"promotion": {"floors": {"loss": 3.0}}}, "promotion.floors.loss: unknown key"),
        ({"promotion": {"improve": {"metric": "loss"}}}, "promotion.improve.metric: input should be 'lm_loss'"),
        ({"promotion": {"improve": {"margin": 0}}}, "promotion.improve.margin: input should be greater than 0, not 0"),
        ({"promotion": {"improve": {"metric": "ece", "margin": 2}}}, "margin=2 of ece, which lies in 0..1"),
        ({"promotion": {"margins": {"lm_loss": -0.1}}}, "margins.lm_loss: input should be greater than or equal to 0"),
        ({"promotion": {"margins": {"acceptance": 1}}}, "margins.acceptance: input should be less than 1, not 1"),
        ({"promotion": {"floors": {"ece": 5}}}, "promotion.floors.ece: input should be less than 1, not 5"),
        ({"promotion": {"confidence": 95}}, "promotion.confidence: input should be less than 1, not 95"),
        ({"promotion": {"confidence": 0.999}}, "resamples=10000 leave 5 beyond each end of an interval"),
        ({"promotion": {"resamples": 100}}, "promotion.resamples: input should be greater than or equal to 1000"),
        ({"promotion": {"model": "a/b"}}, "promotion.model: string should match pattern"),
        (
            {"promotion": {"margins": dict.fromkeys(("lm_loss", "kl_to_teacher", "acceptance", "ece"))}},
            "no margin, no floor and nothing to improve",
        ),
        ({"corpus": {"source": {"kind": "text"}}}, "text needs a uri"),
        ({"ray": {"enabled": False}, "train": {"workers": 1}}, "train.workers=1 of student default needs Ray"),
        ({"ray": {"enabled": False, "address": "auto"}, "train": {"workers": 0}}, "ray.address needs Ray"),
        ({"ray": {"address": "http://"}}, "ray: address=http:// names no head: write http://HEAD:8265"),
        ({"ray": {"address": "https://head:x"}}, "ray: address=https://head:x names no head"),
        ({"ray": {"address": "http://me:secret@head:8265"}}, "ray.address: is a URI with a password"),
        ({"ray": {"address": "auto", "code": "sent"}}, "code='sent' is not used by address=auto"),
        ({"ray": {"enabled": False, "driver_cpus": 1}}, "driver_cpus=1.0 is not used by ray.enabled=false"),
        ({"ray": {"address": "http://head:8265", "driver_cpus": -1}}, "ray.driver_cpus: input should be greater than"),
        (
            {"ray": {"enabled": False}, "train": {"workers": 0}, "teacher": {"model": "x", "workers": 2}},
            "teacher.workers=2 needs Ray",
        ),
        (
            {"ray": {"enabled": False}, "train": {"workers": 0}, "evaluate": {"workers": 2}},
            "evaluate.workers=2 needs Ray",
        ),
    ],
)
def test_refusals_are_one_line_that_names_the_rule_and_the_value(extra: dict, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        validate_config(MINIMAL | extra)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


_REQUIRED = {
    "generate": {"prompt_sets": {"own": {"kind": "own", "uri": "prompts.jsonl"}}},
    "judge": {"endpoint": "http://127.0.0.1:8000/v1", "model": "judge"},
}


def _numbers(section: type[BaseModel], path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """The path of every field that takes a float."""
    found = []
    for name, field in section.model_fields.items():
        kinds = _leaves(field.annotation)
        for kind in kinds:
            if isinstance(kind, type) and issubclass(kind, BaseModel) and "dict" not in str(field.annotation):
                found += _numbers(kind, (*path, name))
        if float in kinds and bool not in kinds and "tuple" not in str(field.annotation):
            found.append((*path, name))
    return found


@pytest.mark.parametrize("path", _numbers(DistillConfig), ids=".".join)
@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan"), True])
def test_no_number_is_infinite_or_a_bool(path: tuple[str, ...], value: float) -> None:
    settings: object = value
    for name in reversed(path):
        settings = {name: settings}
    assert isinstance(settings, dict)
    with pytest.raises(ConfigError, match=re.escape(".".join(path))) as error:
        validate_config(merge(MINIMAL, merge({path[0]: _REQUIRED.get(path[0], {})}, settings)))
    assert "\n" not in str(error.value)


def test_a_margin_replaces_one_default_and_leaves_the_others() -> None:
    config = validate_config(MINIMAL | {"promotion": {"margins": {"lm_loss": 0.1, "ece": None}, "improve": {}}})
    assert config.promotion.margins.model_dump() == {
        "lm_loss": 0.1,
        "kl_to_teacher": 0.02,
        "acceptance": 0.01,
        "ece": None,
        "top1_agreement": None,
    }
    assert config.promotion.improve is not None
    assert (config.promotion.improve.metric, config.promotion.improve.margin) == ("lm_loss", 0.01)
    assert config.registered_model == "n"
    assert validate_config(MINIMAL | {"promotion": {"model": "small-llm"}}).registered_model == "small-llm"


def test_numbers_that_came_as_text() -> None:
    train = {"lr": "1e-3", "steps": "1_000", "betas": ["9e-1", "95e-2"], "global_batch": 8.0}
    config = validate_config(MINIMAL | {"train": train, "students": {"s": {"train": {"lr": "1E-4"}}}})
    assert (config.train.lr, config.train.steps, config.train.betas, config.train.global_batch) == (
        0.001,
        1000,
        (0.9, 0.95),
        8,
    )
    assert config.student_specs["s"].train.lr == 1e-4


def test_conversations_are_isolated_unless_the_config_says_otherwise() -> None:
    assert validate_config(MINIMAL | _corpus(kind="chat")).corpus.isolate_documents
    assert not validate_config(MINIMAL | _corpus(kind="chat", isolate_documents=False)).corpus.isolate_documents
    assert not validate_config(MINIMAL | _corpus()).corpus.isolate_documents
    assert validate_config(MINIMAL | _corpus(kind="chat", bos="none")).corpus.loss_on == "assistant"


@pytest.mark.parametrize("name", ["t=0.8", "kd+ce", "été", "学生", "top k (10)", "50%", "a.b", "_x"])
def test_names_that_make_a_folder(name: str) -> None:
    config = validate_config(MINIMAL | {"samplings": {name: {}}, "students": {name: {"sampling": name}}})
    assert config.student_uri(name) == str(Path(".rskd/n/students", name).absolute())


@pytest.mark.parametrize("residual", ["none", "smooth", "ghost", "label"])
@pytest.mark.parametrize("sampling", [{"method": "top_k", "k": 5}, {"method": "top_p", "k": 9, "p": 0.98}])
def test_every_target_of_the_paper_can_be_asked_for(sampling: dict, residual: str) -> None:
    validate_config(MINIMAL | {"sampling": sampling, "objective": {"residual": residual}})


@pytest.mark.parametrize("temperature", [0, 0.8, 1.0, 1.2])
def test_every_proposal_of_the_paper_can_be_asked_for(temperature: float) -> None:
    sampling = {"method": "random", "num_samples": 50, "temperature": temperature}
    assert validate_config(MINIMAL | {"sampling": sampling}).sampling.temperature == temperature


def test_a_default_may_be_written_out_where_the_method_does_not_use_it() -> None:
    validate_config(MINIMAL | {"sampling": {"method": "top_k", "k": 5, "num_samples": 22, "temperature": 1.0}})


@pytest.mark.parametrize("name", ["null", "2024", "true"])
def test_a_name_on_the_command_line_is_text(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.yaml").write_text("name: a\ncorpus: {source: {kind: python_docs}}\nteacher: {model: b}\n")
    assert load_config(tmp_path / "a.yaml", [f"name={name}"]).name == name


def test_overrides_are_yaml_and_reach_any_depth(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("name: n\ncorpus: {source: {kind: python_docs}}\nteacher: {model: m}\n")
    config = load_config(path, ["train.steps=5", "samplings.x.num_samples=9", "corpus.isolate_documents=true"])
    assert config.train.steps == 5
    assert config.cache_samplings["x"].num_samples == 9
    assert config.corpus.isolate_documents
    with pytest.raises(ConfigError, match=r"section\.key=value"):
        load_config(path, ["train.steps"])


@pytest.mark.parametrize("text", ["- a list", "name: [unclosed", ""])
def test_files_that_are_no_configuration(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError):
        load_config(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path / "absent.yaml")


def test_every_field_is_documented() -> None:
    schema = DistillConfig.model_json_schema()
    for definition in [schema, *schema["$defs"].values()]:
        for name, field in definition["properties"].items():
            assert field.get("description"), f"{definition['title']}.{name}"


def test_the_shipped_configurations_are_valid() -> None:
    configs = Path(__file__).parents[3] / "flows" / "configs"
    names = [load_config(path).name for path in sorted(configs.glob("*.yaml"))]
    assert "demo" in names


def test_arguments_of_vllm_are_for_vllm() -> None:
    def teacher(**options) -> DistillConfig:
        return validate_config(MINIMAL | {"teacher": {"model": "m", **options}})

    engine = {"tensor_parallel": 2, "gpus_per_worker": 2, "quantization": "fp8", "engine_args": {"enforce_eager": True}}
    assert teacher(engine="vllm", **engine).teacher.engine_args == {"enforce_eager": True}
    for option in ("tensor_parallel", "quantization", "engine_args"):
        with pytest.raises(ConfigError, match=f"{option}=.* is not used by engine transformers"):
            teacher(**{option: engine[option]})
    with pytest.raises(ConfigError, match="one GPU for each process"):
        teacher(engine="vllm", tensor_parallel=2, gpus_per_worker=1)


@pytest.mark.parametrize("key", ["storage.root", "tracking.uri", "corpus.source.uri"])
def test_a_password_in_a_uri_is_refused_and_not_shown(key: str):
    section, _, name = key.rpartition(".")
    settings = {**MINIMAL, "corpus": {"source": {"kind": "text", "uri": "a@b:c/*"}}}
    target = settings["corpus"]["source"] if section == "corpus.source" else settings.setdefault(section, {})
    target[name] = "http://me:hidden@host/path"
    with pytest.raises(ConfigError, match=f"{key}: is a URI with a password") as refused:
        validate_config(settings)
    assert "hidden" not in str(refused.value)
    target[name] = "http://me@host/path"
    validate_config(settings)


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parents[3] / "flows" / "configs").glob("*.yaml")), ids=lambda path: path.stem
)
def test_the_configurations_that_come_along_are_valid(path: Path):
    assert load_config(path).student_specs
