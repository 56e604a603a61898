"""Classification tasks whose labels are uncertain, so that calibration can be seen: Gaussian classes, noisy images.

Shapes: n examples, C classes, D dimensions, [n, channels, height, width] images.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rskd.synthetic.cifar100 import read_split

Split = Literal["train", "test"]
CLASSES, DIMENSIONS, SIGMA = 64, 16, 1.0  # the paper: 1024, 128, 1.5, for 20,000 steps of 4,096 on a GPU
DIGITS_NOISE = 0.6  # standard deviation of the noise on pixels within 0..1


class Task(Protocol):
    """Where examples come from, and the network that learns them."""

    @property
    def num_classes(self) -> int: ...

    def examples(self, n: int, split: Split, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Inputs [n, ...] and labels int64 [n], drawn afresh; the test split shares no source with the train split."""
        ...

    def network(self, role: Literal["teacher", "student"]) -> nn.Sequential:
        """Inputs to logits; the last module is an `nn.Linear`."""
        ...


@dataclass(frozen=True)
class GaussianClasses:
    """Points around class centres with a spread of its own for each class (paper, Appendices B and K)."""

    centers: Tensor  # [C, D], within 0..1
    sigmas: Tensor  # [C], within 0..SIGMA

    @classmethod
    def make(cls, generator: torch.Generator) -> Self:
        """A random instance."""
        return cls(
            torch.rand(CLASSES, DIMENSIONS, generator=generator), SIGMA * torch.rand(CLASSES, generator=generator)
        )

    @property
    def num_classes(self) -> int:
        return len(self.centers)

    def examples(self, n: int, split: Split, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Points of random classes; every point is new, so the splits do not differ."""
        labels = torch.randint(self.num_classes, (n,), generator=generator)
        noise = torch.randn(n, self.centers.shape[1], generator=generator)
        return self.centers[labels] + self.sigmas[labels, None] * noise, labels

    def network(self, role: Literal["teacher", "student"]) -> nn.Sequential:
        """Three layers."""
        width = {"teacher": 64, "student": 48}[role]
        return nn.Sequential(
            nn.Linear(self.centers.shape[1], width),
            nn.GELU(),
            nn.Linear(width, width),
            nn.GELU(),
            nn.Linear(width, self.num_classes),
        )


@dataclass(frozen=True)
class Images:
    """Images with noise on their pixels, drawn afresh for each example."""

    images: dict[Split, Tensor]  # [n, channels, height, width], within 0..1
    labels: dict[Split, Tensor]  # int64 [n]
    noise: float

    @classmethod
    def digits(cls) -> Self:
        """scikit-learn's 1,797 handwritten digits of 8 x 8 pixels; the last third is the test split."""
        from sklearn.datasets import load_digits

        pixels, classes = load_digits(return_X_y=True)
        images = torch.as_tensor(pixels).float().reshape(-1, 1, 8, 8) / 16
        labels = torch.as_tensor(classes).long()
        test = len(labels) // 3
        return cls(
            {"train": images[:-test], "test": images[-test:]},
            {"train": labels[:-test], "test": labels[-test:]},
            noise=DIGITS_NOISE,
        )

    @classmethod
    def cifar100(cls, folder: Path) -> Self:
        """CIFAR-100 in its binary form; without noise. Raises ConfigError as `read_split` does."""
        train_images, train_labels = read_split(folder, "train")
        test_images, test_labels = read_split(folder, "test")
        return cls({"train": train_images, "test": test_images}, {"train": train_labels, "test": test_labels}, noise=0)

    @property
    def num_classes(self) -> int:
        return int(self.labels["train"].max()) + 1

    def examples(self, n: int, split: Split, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Random images of the split, centred on 0, each with noise of its own."""
        chosen = torch.randint(len(self.labels[split]), (n,), generator=generator)
        images = self.images[split][chosen]
        return images + self.noise * torch.randn(images.shape, generator=generator) - 0.5, self.labels[split][chosen]

    def network(self, role: Literal["teacher", "student"]) -> nn.Sequential:
        """A small residual network; it brings images of 8 pixels to 4, those of 32 too, in three steps."""
        channels, _, size = self.images["train"].shape[1:]
        width = size * {"teacher": 2, "student": 1}[role]
        strides = [1] + [2] * (size // 16)
        widths = [width * 2**index for index in range(len(strides))]
        blocks = [_Block(before, after, stride) for before, after, stride in zip([width, *widths], widths, strides)]
        stem = [nn.Conv2d(channels, width, 3, stride=2, padding=1), *blocks, nn.AdaptiveAvgPool2d(2), nn.Flatten()]
        return nn.Sequential(*stem, nn.Linear(4 * widths[-1], self.num_classes))


class _Block(nn.Module):
    """Residual block of He et al. 2016, with group instead of batch normalisation: the same in training and use."""

    def __init__(self, before: int, after: int, stride: int):
        super().__init__()
        self.first = nn.Conv2d(before, after, 3, stride, padding=1)
        self.second = nn.Conv2d(after, after, 3, padding=1)
        self.norms = nn.ModuleList([nn.GroupNorm(4, before), nn.GroupNorm(4, after)])
        self.skip = nn.Conv2d(before, after, 1, stride) if stride > 1 or before != after else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """[n, before, height, width] to [n, after, height / stride, width / stride]."""
        inner = self.first(F.relu(self.norms[0](x)))
        return self.skip(x) + self.second(F.relu(self.norms[1](inner)))
