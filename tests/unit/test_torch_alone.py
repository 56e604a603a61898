"""The numerics need torch and nothing heavier: a machine with a GPU may have no more."""

import subprocess
import sys

PROGRAM = """
import importlib.abc
import sys

BLOCKED = {"ray", "prefect", "mlflow", "vllm", "pydantic", "pyarrow", "transformers", "fsspec", "triton"}

class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocker())

import rskd.rng, rskd.models.output_head, rskd.sparse_targets
import rskd.student.bias, rskd.student.divergence, rskd.student.fused_loss
import rskd.student.objective, rskd.student.triton_loss
import rskd.teacher.hidden_to_targets, rskd.teacher.sampling
from rskd import SparseTargets, sample_from_hidden, sample_targets, sparse_kd_loss

import torch

hidden, weight = torch.randn(6, 4), torch.randn(30, 4, requires_grad=True)
targets = sample_from_hidden(hidden, weight)
sparse_kd_loss(hidden, weight, targets).backward()
"""


def test_the_numerics_import_and_run_with_torch_alone():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
