"""CIFAR-100 in its binary form, which is read without unpickling anything.

`<folder>/train.bin` and `test.bin`: records of 3,074 bytes, which are the coarse label, the fine label, and 32 x 32
pixels of red, then green, then blue, row by row (https://www.cs.toronto.edu/~kriz/cifar.html, "binary version").
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from rskd.errors import ConfigError

NUM_CLASSES = 100
_SHAPE = (3, 32, 32)
_RECORD_BYTES = 2 + 3 * 32 * 32


def read_split(folder: Path, split: Literal["train", "test"]) -> tuple[Tensor, Tensor]:
    """Images float32 [n, 3, 32, 32] within 0..1 and fine labels int64 [n] within 0..99.

    Raises ConfigError for a file that is missing, empty or of another format.
    """
    file = folder / f"{split}.bin"
    try:
        data = np.fromfile(file, dtype=np.uint8)
    except OSError as error:
        raise ConfigError(
            f"--cifar100 {folder}: {file.name} cannot be read ({error.strerror}): name the folder of the binary "
            "version, cifar-100-binary, with train.bin and test.bin"
        ) from None
    if len(data) == 0 or len(data) % _RECORD_BYTES:
        raise ConfigError(f"{file} has {len(data):,} bytes, no multiple of {_RECORD_BYTES:,}: download it again")
    records = data.reshape(-1, _RECORD_BYTES)
    labels = torch.from_numpy(records[:, 1].astype(np.int64))
    if int(labels.max()) >= NUM_CLASSES:
        raise ConfigError(f"{file} has the fine label {int(labels.max())}, beyond 99: is it CIFAR-100's binary form?")
    return torch.from_numpy(records[:, 2:].reshape(-1, *_SHAPE).astype(np.float32) / 255), labels
