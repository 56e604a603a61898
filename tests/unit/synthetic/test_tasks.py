"""Where the examples come from, and the binary form of CIFAR-100, written here record by record."""

from pathlib import Path

import numpy as np
import pytest
import torch

from rskd.errors import ConfigError
from rskd.synthetic.cifar100 import read_split
from rskd.synthetic.tasks import GaussianClasses, Images


def write_cifar100(folder: Path, split: str, records: int) -> tuple[np.ndarray, np.ndarray]:
    """A file of random images; returns pixels [n, 3, 32, 32] and fine labels."""
    rng = np.random.default_rng(len(split))
    pixels = rng.integers(0, 256, (records, 3, 32, 32), dtype=np.uint8)
    fine = np.arange(records, dtype=np.uint8) % 100
    lines = [bytes([7, label]) + image.tobytes() for label, image in zip(fine, pixels)]
    (folder / f"{split}.bin").write_bytes(b"".join(lines))
    return pixels, fine


def test_reads_the_binary_form_of_cifar100(tmp_path: Path):
    pixels, fine = write_cifar100(tmp_path, "train", 120)
    images, labels = read_split(tmp_path, "train")
    assert labels.tolist() == fine.tolist()
    torch.testing.assert_close(images, torch.from_numpy(pixels).float() / 255)


def test_refuses_what_is_not_cifar100(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"train\.bin cannot be read.*cifar-100-binary"):
        Images.cifar100(tmp_path)
    (tmp_path / "train.bin").write_bytes(b"")
    with pytest.raises(ConfigError, match="0 bytes"):
        read_split(tmp_path, "train")
    (tmp_path / "train.bin").write_bytes(bytes(3074 + 1))
    with pytest.raises(ConfigError, match="3,075 bytes, no multiple of 3,074"):
        read_split(tmp_path, "train")
    (tmp_path / "train.bin").write_bytes(bytes([0, 100]) + bytes(3072))
    with pytest.raises(ConfigError, match="fine label 100"):
        read_split(tmp_path, "train")


@pytest.mark.parametrize("role", ["teacher", "student"])
def test_networks_give_a_logit_a_class(tmp_path: Path, role):
    for split in ("train", "test"):
        write_cifar100(tmp_path, split, 100)
    generator = torch.Generator().manual_seed(0)
    for task in (GaussianClasses.make(generator), Images.digits(), Images.cifar100(tmp_path)):
        inputs, labels = task.examples(3, "train", generator)
        assert task.network(role)(inputs).shape == (3, task.num_classes)
        assert labels.shape == (3,)
        assert int(labels.max()) < task.num_classes


def test_no_digit_is_in_both_splits():
    digits = Images.digits()
    assert len(digits.labels["train"]) + len(digits.labels["test"]) == 1797
    train = {tuple(image.flatten().tolist()) for image in digits.images["train"]}
    assert not any(tuple(image.flatten().tolist()) in train for image in digits.images["test"])


def test_each_example_has_noise_of_its_own():
    digits, generator = Images.digits(), torch.Generator().manual_seed(0)
    images, _ = digits.examples(4000, "train", generator)
    spread = torch.stack([digits.images["train"].std(0), images.std(0)]).mean((1, 2, 3))
    assert spread[1] == pytest.approx(float((spread[0] ** 2 + digits.noise**2).sqrt()), rel=0.05)
    assert not torch.equal(images, digits.examples(4000, "train", generator)[0])
