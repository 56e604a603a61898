"""From a teacher on the device through a cache on disk to a student on the device, with weights that are made here.

    model directory ─► TransformersTeacher ─► CacheWriter ─► CacheLoader ─► StudentLoss, train_step ─► checkpoint

A student that is its teacher has, on sampled targets, the teacher's entropy as its loss: E[Σ w·(-log p)] = H(p).
"""

from functools import partial
from pathlib import Path

import pytest
import torch
from devices import DEVICE, TINY
from made_caches import CorpusPart, make_head
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from rskd.cache.codec import PartData
from rskd.cache.loader import CacheLoader
from rskd.cache.reader import LogitCache
from rskd.cache.writer import CacheWriter
from rskd.config import ObjectiveConfig, TeacherConfig, TrainConfig
from rskd.models.load import load_model
from rskd.rng import position_keys
from rskd.student.checkpoint import CheckpointWriter, Progress
from rskd.student.sharding import distribute
from rskd.student.trainer import StudentLoss, make_optimizer, train_step
from rskd.teacher.hidden_to_targets import Order
from rskd.teacher.sampling import Sampling
from rskd.teacher.transformers_teacher import TransformersTeacher

pytestmark = pytest.mark.gpu
WINDOWS, BATCH_WINDOWS, STEPS = 16, 4, 12
SEQ_LEN = 64 if TINY else 512
SMALL = {
    "vocab_size": 400,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
SMOLLM2 = {  # the size of SmolLM2-135M
    "vocab_size": 49_152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
}
SIZES = {"small": SMALL} if TINY else {"small": SMALL, "SmolLM2-135M": SMOLLM2}


@pytest.fixture(scope="module", params=SIZES)
def teacher_dir(request, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    size = SIZES[request.param]
    config = LlamaConfig(**size, tie_word_embeddings=True, initializer_range=1.5 / size["hidden_size"] ** 0.5)
    directory = tmp_path_factory.mktemp("teacher")
    LlamaForCausalLM(config).save_pretrained(directory)
    return directory


def write_cache(uri: str, teacher_dir: Path, dtype: str) -> float:
    """A cache of one part with random windows; returns the teacher's mean entropy there, nats."""
    config = TeacherConfig(model=str(teacher_dir), dtype=dtype)  # pyright: ignore[reportArgumentType]
    teacher = TransformersTeacher.load(config, model_dir=str(teacher_dir), device=DEVICE)
    vocab_size = teacher.num_ids - 7  # a padded vocabulary
    row_ids = torch.arange(WINDOWS)
    ids = torch.randint(vocab_size, (WINDOWS, SEQ_LEN + 1), generator=torch.Generator().manual_seed(0))
    keys, order = position_keys(row_ids, SEQ_LEN), Order({"": Sampling()}, ("label_logprob", "entropy"), vocab_size)
    parts = [teacher.sample(*batch, order) for batch in zip(ids.split(BATCH_WINDOWS), keys.split(BATCH_WINDOWS))]
    width = max(part.drawn[""].ids.shape[1] for part in parts)

    def columns(name: str):
        padded = (getattr(part.drawn[""], name) for part in parts)
        found = [torch.nn.functional.pad(tensor, (0, width - tensor.shape[1])) for tensor in padded]
        return torch.cat(found).reshape(WINDOWS, SEQ_LEN, width).int().cpu().numpy()

    logprob = torch.cat([part.statistics["label_logprob"] for part in parts]).reshape(WINDOWS, SEQ_LEN)
    statistics = {"label_logprob": logprob.cpu().numpy()}
    data = PartData(row_ids.numpy(), ids.int().numpy(), columns("ids"), columns("values"), statistics)
    head = make_head(tokenizer__vocab_size=vocab_size, corpus__seq_len=SEQ_LEN, corpus__parts=1)
    corpus = CorpusPart(0, 0, WINDOWS, "made")
    writer = CacheWriter(uri, manifest_head=head)
    writer.commit_part(0, data, corpus_sha256=corpus.sha256)
    writer.finish([corpus])
    return torch.cat([part.statistics["entropy"] for part in parts]).double().mean().item()


def run(uri: str, build, precision: str, *, steps: int = STEPS):
    """Losses of the steps, the student and its optimizer."""
    cache = LogitCache.open(uri)
    config = TrainConfig(steps=steps, global_batch=WINDOWS, micro_batch=4, lr=2e-3, min_lr=1e-3, precision=precision)  # pyright: ignore[reportArgumentType]
    vocab_size = cache.manifest.tokenizer["vocab_size"]
    make_loss = partial(StudentLoss, objective=ObjectiveConfig(), vocab_size=vocab_size)
    loss = distribute(build, make_loss, config, DEVICE)
    optimizer = make_optimizer(loss.student, config)  # pyright: ignore[reportArgumentType]
    batches = iter(CacheLoader(cache, global_batch=WINDOWS, pin_memory=DEVICE.type == "cuda"))
    losses = [
        train_step(loss, optimizer, next(batches), config, step=step, device=DEVICE)["loss"] for step in range(steps)
    ]
    return losses, loss.student, optimizer


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_student_that_is_its_teacher_has_its_entropy_as_loss(teacher_dir, tmp_path, precision):
    """Within 4 standard errors of draws whose -log p has a deviation of 1 at most; bf16 adds its own rounding."""
    entropy = write_cache(str(tmp_path / "cache"), teacher_dir, precision)
    assert entropy > 1
    losses, _, _ = run(str(tmp_path / "cache"), lambda: load_model(str(teacher_dir)), precision, steps=1)
    sampling = 4 / (WINDOWS * SEQ_LEN * Sampling().num_samples) ** 0.5
    assert losses[0] == pytest.approx(entropy, abs=sampling + (0.02 * entropy if precision == "bfloat16" else 0))


def test_a_new_student_learns_and_is_exported(teacher_dir, tmp_path, tiny_tokenizer_dir):
    entropy = write_cache(str(tmp_path / "cache"), teacher_dir, "bfloat16")

    def build() -> LlamaForCausalLM:
        torch.manual_seed(1)
        config = LlamaConfig.from_pretrained(teacher_dir)
        config.num_hidden_layers, config.initializer_range = 2, 0.02
        return LlamaForCausalLM(config)

    losses, student, optimizer = run(str(tmp_path / "cache"), build, "bfloat16")
    assert entropy < losses[-1] < losses[0] - 0.05
    directory = tmp_path / "student"
    tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer_dir)
    CheckpointWriter(student, tokenizer, optimizer).write(directory, Progress(STEPS, {"epoch": 0, "step": 0}), [])
    exported = AutoModelForCausalLM.from_pretrained(directory).state_dict()
    for name, tensor in student.state_dict().items():
        assert torch.equal(exported[name], tensor.cpu())
