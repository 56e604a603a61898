"""An honest cache passes; one that was made in any other way than it says fails."""

import copy
import shutil
from collections.abc import Callable
from pathlib import Path

import huggingface_hub.constants
import numpy as np
import pytest
import torch
from made_models import make_model

from rskd.cache.codec import PartData
from rskd.cache.misaligned import misaligned_copy
from rskd.cache.reader import LogitCache
from rskd.cache.writer import CacheWriter
from rskd.config import SamplingConfig, TeacherConfig
from rskd.corpus.packed_corpus import PartInfo
from rskd.errors import CacheMismatchError, ConfigError, CorruptPartError
from rskd.evaluation.audit import AuditReport, audit_cache, chi_square, judge, mean_and_error, measure
from rskd.models.files import weights_fingerprint
from rskd.rng import position_keys
from rskd.teacher.hidden_to_targets import sample_rows
from rskd.teacher.sampling import Sampling
from rskd.teacher.transformers_teacher import TransformersTeacher, describe_teacher

VOCAB, ROWS, SEQ_LEN = 384, 24, 64
SYSTEMATIC = SamplingConfig(num_samples=20)
Change = Callable[[PartData], PartData]


@pytest.fixture(scope="module")
def teacher(tiny_teacher_dir: Path) -> TransformersTeacher:
    return load(tiny_teacher_dir, "float32")


def load(directory: Path, dtype: str) -> TransformersTeacher:
    return TransformersTeacher.load(TeacherConfig(model=str(directory), dtype=dtype), model_dir=str(directory))


def write_cache(
    uri: Path,
    teacher: TransformersTeacher,
    directory: Path,
    config: SamplingConfig = SYSTEMATIC,
    change: Change = lambda data: data,
    masked: bool = False,
    **named: str,
) -> str:
    """A cache of random windows that `teacher` makes in one batch; it says that it is of `directory`, or as `named`."""
    input_ids = torch.randint(VOCAB, (ROWS, SEQ_LEN + 1), generator=torch.Generator().manual_seed(0))
    row_ids = torch.arange(ROWS)
    sampling = Sampling.of(config.model_dump())
    keys = position_keys(row_ids, SEQ_LEN)
    hidden = teacher.hidden(input_ids[:, :-1])
    drawn = sample_rows(hidden, teacher.head, {"": sampling}, keys, vocab_size=VOCAB).drawn[""]
    data = PartData(
        row_ids.numpy(),
        input_ids.int().numpy(),
        drawn.ids.int().numpy().reshape(ROWS, SEQ_LEN, -1),
        drawn.values.numpy().reshape(ROWS, SEQ_LEN, -1),
        {},
    )
    dtype = str(teacher.model.dtype).removeprefix("torch.")
    described = TeacherConfig(model=str(directory), dtype=dtype)
    head = {
        "sampling": config.model_dump(mode="json"),
        "teacher": describe_teacher(described, weights_fingerprint(str(directory))) | named,
        "tokenizer": {"fingerprint": "", "vocab_size": VOCAB},
        "corpus": {
            "fingerprint": "",
            "seq_len": SEQ_LEN,
            "seed": 0,
            "isolate_documents": False,
            "end_of_text_id": 0,
            "rows_per_group": 16,
            **({"masked": True} if masked else {}),
        },
    }
    writer = CacheWriter(str(uri), manifest_head=head)
    writer.commit_part(0, change(data), corpus_sha256="")
    writer.finish([PartInfo(0, "", 0, ROWS, "", 0)])
    return str(uri)


def shifted(by: int) -> Change:
    return lambda data: PartData(
        data.row_ids, data.input_ids, np.roll(data.ids, by, axis=1), np.roll(data.values, by, axis=1), {}
    )


def with_permuted_ids(data: PartData) -> PartData:
    permutation = np.random.default_rng(0).permutation(VOCAB).astype(np.int32)
    ids = np.where(data.values > 0, permutation[data.ids], 0)
    return PartData(data.row_ids, data.input_ids, ids, data.values, {})


def with_loss_at(has_loss: np.ndarray) -> Change:
    """Of a masked cache: targets where there is a loss, bool [R, S], alone."""
    return lambda data: PartData(data.row_ids, data.input_ids, data.ids, data.values * has_loss[..., None], {})


def perturbed(teacher: TransformersTeacher, relative: float) -> TransformersTeacher:
    """The same teacher with weights that are off by a few parts in 1/relative."""
    model = copy.deepcopy(teacher.model)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1 + relative * torch.randn(parameter.shape, generator=generator).to(parameter.dtype))
    return TransformersTeacher(model)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "sampling",
    [
        SYSTEMATIC,
        SamplingConfig(method="random", num_samples=30),
        SamplingConfig(method="random", num_samples=30, temperature=0.8),
    ],
    ids=["systematic", "random", "random, t=0.8"],
)
def test_an_honest_cache_passes(tmp_path: Path, tiny_teacher_dir: Path, sampling: SamplingConfig, dtype: str):
    uri = write_cache(tmp_path / "cache", load(tiny_teacher_dir, dtype), tiny_teacher_dir, sampling)
    report = audit_cache(uri, str(tiny_teacher_dir), rows=ROWS)
    assert report.ok, report
    assert (report.rows, report.positions) == (ROWS, ROWS * SEQ_LEN)
    assert report.fingerprint_matches
    assert report.reproduced > 0.999


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_other_kernels_pass(tmp_path: Path, tiny_teacher_dir: Path, dtype: str):
    config = TeacherConfig(model=str(tiny_teacher_dir), dtype=dtype, attention="eager")
    other = TransformersTeacher.load(config, model_dir=str(tiny_teacher_dir))
    report = audit_cache(write_cache(tmp_path, other, tiny_teacher_dir), str(tiny_teacher_dir), rows=ROWS)
    assert report.ok, report
    assert report.reproduced < 0.9 or dtype == "float32"


@pytest.mark.parametrize(
    "sampling",
    [
        SamplingConfig(method="top_k", k=10),
        SamplingConfig(method="top_k", k=100),
        SamplingConfig(method="top_p", p=0.95, k=100),
    ],
    ids=["top 10", "top 100", "top p"],
)
def test_a_biased_cache_fails(tmp_path: Path, tiny_teacher_dir: Path, teacher: TransformersTeacher, sampling):
    report = audit_cache(write_cache(tmp_path, teacher, tiny_teacher_dir, sampling), str(tiny_teacher_dir), rows=ROWS)
    assert not report.unbiased
    assert not report.ok
    assert report.aligned
    assert report.reproduced_wider >= report.reproduced_bound


def test_top_k_that_says_it_was_sampled_fails(tmp_path: Path, tiny_teacher_dir: Path, teacher: TransformersTeacher):
    def keep_likeliest(data: PartData) -> PartData:
        kept = np.sort(data.values, axis=-1)[..., -3, None]
        return PartData(data.row_ids, data.input_ids, data.ids, np.where(data.values >= kept, data.values, 0), {})

    uri = write_cache(tmp_path, teacher, tiny_teacher_dir, change=keep_likeliest)
    report = audit_cache(uri, str(tiny_teacher_dir), rows=ROWS)
    assert not report.unbiased
    assert not report.ok


@pytest.mark.parametrize("by", [-1, 1])
def test_a_shifted_cache_fails(tmp_path: Path, tiny_teacher_dir: Path, teacher: TransformersTeacher, by: int):
    uri = write_cache(tmp_path, teacher, tiny_teacher_dir, change=shifted(by))
    report = audit_cache(uri, str(tiny_teacher_dir), rows=ROWS)
    assert not report.ok
    assert not report.aligned
    assert report.reproduced_wider < report.reproduced_bound


def test_permuted_ids_fail(tmp_path: Path, tiny_teacher_dir: Path, teacher: TransformersTeacher):
    uri = write_cache(tmp_path, teacher, tiny_teacher_dir, change=with_permuted_ids)
    report = audit_cache(uri, str(tiny_teacher_dir), rows=ROWS)
    assert not report.ok
    assert not report.unbiased


@pytest.mark.parametrize(("dtype", "relative"), [("float32", 1e-3), ("bfloat16", 0.02)])
def test_another_teacher_fails_whatever_its_fingerprint(
    tmp_path: Path, tiny_teacher_dir: Path, dtype: str, relative: float
):
    impostor = perturbed(load(tiny_teacher_dir, dtype), relative)
    uri = write_cache(tmp_path, impostor, tiny_teacher_dir)
    report = audit_cache(uri, str(tiny_teacher_dir), rows=ROWS)
    assert report.fingerprint_matches
    assert report.reproduced_wider < report.reproduced_bound
    assert not report.ok


def test_the_fingerprint_alone_can_be_ignored(tmp_path: Path, tiny_teacher_dir: Path, teacher: TransformersTeacher):
    uri = write_cache(tmp_path / "cache", teacher, tiny_teacher_dir)
    resaved = tmp_path / "resaved"
    teacher.model.save_pretrained(resaved, max_shard_size="50KB")
    assert not audit_cache(uri, str(resaved), rows=ROWS).ok
    report = audit_cache(uri, str(resaved), rows=ROWS, ignore_fingerprint=True)
    assert report.ok
    assert not report.fingerprint_matches


def test_a_teacher_with_fewer_ids_is_a_mismatch(tmp_path: Path, tiny_teacher_dir: Path, teacher: TransformersTeacher):
    uri = write_cache(tmp_path / "cache", teacher, tiny_teacher_dir)
    small = copy.deepcopy(teacher.model)
    small.resize_token_embeddings(VOCAB - 1)
    small.save_pretrained(tmp_path / "small")
    with pytest.raises(CacheMismatchError, match="384 token ids"):
        audit_cache(uri, str(tmp_path / "small"))


def test_the_report_is_plain_json(tmp_path: Path, tiny_teacher_dir: Path, teacher: TransformersTeacher):
    report = audit_cache(write_cache(tmp_path, teacher, tiny_teacher_dir), str(tiny_teacher_dir), rows=2)
    assert isinstance(report, AuditReport)
    wanted = {"ok", "rows", "positions", "reproduced", "z_score", "aligned", "unbiased", "fingerprint_matches"}
    plain = report.to_dict()
    assert wanted <= plain.keys()
    assert {type(value) for value in plain.values()} <= {bool, int, float}


def test_the_error_is_clustered_by_window():
    generator = torch.Generator().manual_seed(0)
    independent = torch.randn(50, 40, generator=generator)
    mean, error = mean_and_error(independent, torch.ones(50, 40))
    assert mean == pytest.approx(float(independent.mean()))
    assert error == pytest.approx(1 / 2000**0.5, rel=0.3)
    by_window = torch.randn(50, 1, generator=generator).expand(50, 40)
    assert mean_and_error(by_window, torch.ones(50, 40))[1] == pytest.approx(1 / 50**0.5, rel=0.3)


def test_of_a_masked_cache_what_has_a_loss_is_audited(tmp_path: Path, tiny_teacher_dir: Path, teacher):
    """Half of the windows have no loss at all."""
    has_loss = np.random.default_rng(0).random((ROWS, SEQ_LEN)) < 0.5
    has_loss[: ROWS // 2] = False
    for name, change, ok in (
        ("honest", with_loss_at(has_loss), True),
        ("shifted", lambda data: with_loss_at(has_loss)(shifted(1)(data)), False),
        ("permuted", lambda data: with_loss_at(has_loss)(with_permuted_ids(data)), False),
    ):
        uri = write_cache(tmp_path / name, teacher, tiny_teacher_dir, change=change, masked=True)
        report = audit_cache(uri, str(tiny_teacher_dir), rows=ROWS)
        assert (report.ok, report.rows, report.positions) == (ok, ROWS, has_loss.sum()), (name, report)
    nothing = write_cache(
        tmp_path / "none", teacher, tiny_teacher_dir, change=with_loss_at(has_loss & False), masked=True
    )
    with pytest.raises(ConfigError, match=r"none of 2 windows of cache .* has a position with a loss: raise rows"):
        audit_cache(nothing, str(tiny_teacher_dir), rows=2)


def test_the_error_of_some_positions_is_theirs_alone():
    generator = torch.Generator().manual_seed(0)
    counted = torch.arange(40) < torch.randint(0, 40, (50, 1), generator=generator)
    values = torch.randn(50, 40, generator=generator, dtype=torch.float64) + 3
    mean, error = mean_and_error(values * counted, counted.double())
    assert mean == pytest.approx(float(values[counted].mean()))
    assert error == pytest.approx(1 / counted.sum().item() ** 0.5, rel=0.3)


def test_chi_square_of_draws_has_its_distribution():
    generator = torch.Generator().manual_seed(0)
    p = torch.tensor([0.5, 0.3, 0.15, 0.049, 0.001])
    draws = torch.multinomial(p, 1000 * 400, replacement=True, generator=generator).view(400, 1000)
    observed = torch.nn.functional.one_hot(draws, 5).sum(1)
    p_values = torch.tensor([chi_square(counts, p * 1000)[1] for counts in observed])
    assert float(p_values.mean()) == pytest.approx(0.5, abs=4 / (12 * 400) ** 0.5)
    assert chi_square(torch.tensor([600, 400, 0, 0, 0]), p * 1000)[1] < 1e-12


def test_a_teacher_of_the_hub_is_that_of_the_revision_that_the_cache_names(
    tmp_path: Path, tiny_teacher_dir: Path, teacher: TransformersTeacher, monkeypatch: pytest.MonkeyPatch
):
    hub, commit, newest = tmp_path / "models--org--tiny", "0123456789" * 4, "9876543210" * 4
    shutil.copytree(tiny_teacher_dir, hub / "snapshots" / commit)
    make_model("llama", hub / "snapshots" / newest)
    (hub / "refs").mkdir()
    (hub / "refs" / "main").write_text(newest)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    made = write_cache(tmp_path / "a", teacher, tiny_teacher_dir, model="org/tiny", revision=commit)
    assert audit_cache(made, "org/tiny", rows=4).ok
    of_another_name = write_cache(tmp_path / "b", teacher, tiny_teacher_dir, model="org/other", revision=commit)
    assert not audit_cache(of_another_name, "org/tiny", rows=4).fingerprint_matches


def test_only_rows_that_exist_are_read(tmp_path: Path, tiny_teacher_dir: Path, teacher: TransformersTeacher):
    uri = write_cache(tmp_path, teacher, tiny_teacher_dir)
    assert audit_cache(uri, str(tiny_teacher_dir), rows=10 * ROWS).rows == LogitCache.open(uri).num_rows


def test_documents_in_other_company_are_refused_unless_told_and_fail_even_then(
    teacher: TransformersTeacher, tiny_teacher_dir: Path, tmp_path: Path
):
    aligned, misaligned = write_cache(tmp_path / "aligned", teacher, tiny_teacher_dir), str(tmp_path / "misaligned")
    misaligned_copy(aligned, misaligned)
    with pytest.raises(CorruptPartError, match="other windows than"):
        audit_cache(misaligned, str(tiny_teacher_dir))

    wider = teacher.to_dtype(torch.float64)
    for uri, passes in ((aligned, True), (misaligned, False)):
        values = measure(LogitCache.open(uri, allow_misaligned=True), teacher, wider, rows=8)
        found = judge(values, fingerprint_matches=True)
        assert (found.ok, found.unbiased) == (passes, passes)
        assert found.aligned or not passes
