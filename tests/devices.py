"""Where tests of numerics run: on the GPU where there is one; `make check-gpu` runs them there."""

import os

import torch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
TINY = "RSKD_TINY" in os.environ  # the checks of a GPU in small, on a CPU
