import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rskd.evaluation import kept_states as module
from rskd.evaluation.kept_states import kept_states


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rows_come_back_bit_for_bit(dtype: torch.dtype):
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(rows, 5, generator=generator).to(dtype) for rows in (3, 0, 4)]
    batches[2][1, 1] = torch.nan
    with kept_states() as kept:
        for batch in batches:
            kept.append(batch.T.contiguous().T)  # rows need not lie together
        found = [kept.read(0, 3), kept.read(3, 0), kept.read(3, 4), kept.read(5, 2)]
        for rows, batch in zip(found, [*batches, batches[2][2:]], strict=True):
            assert rows.dtype == dtype
            assert rows.shape == batch.shape
            assert rows.view(torch.uint8).equal(batch.contiguous().view(torch.uint8))
        kept.clear()
        kept.append(batches[2])
        assert kept.read(0, 1).equal(batches[2][:1])
        with pytest.raises(AssertionError, match="never kept"):
            kept.read(3, 2)


def test_it_says_when_to_stop(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "MOST_BYTES", 100)
    with kept_states() as kept:
        kept.append(torch.zeros(4, 5))
        assert not kept.is_full  # 80 bytes
        kept.append(torch.zeros(1, 5))
        assert kept.is_full
        kept.clear()
        assert not kept.is_full


def test_nothing_is_left_after_a_kill(tmp_path: Path):
    code = (
        "import os, signal, torch; from rskd.evaluation.kept_states import kept_states\n"
        "with kept_states() as kept:\n"
        "    kept.append(torch.zeros(1000, 100)); os.kill(os.getpid(), signal.SIGKILL)"
    )
    killed = subprocess.run([sys.executable, "-c", code], env={**os.environ, "TMPDIR": str(tmp_path)}, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert list(tmp_path.iterdir()) == []
