from pathlib import Path

import numpy as np
import pytest

from rskd.corpus.vocabulary import check_ids, cut_ids
from rskd.errors import ConfigError
from rskd.models.tokenizer import load_tokenizer


def test_ids_without_an_output_row_are_refused_by_name(tiny_tokenizer_dir: Path):
    tokenizer = load_tokenizer(str(tiny_tokenizer_dir))
    tokenizer.add_tokens([f"<{number}>" for number in range(7)])
    backend = tokenizer.backend_tokenizer
    within, beyond = np.array([1, 383], np.int32), np.array([384, 5, 390, 384], np.int32)
    check_ids([within, beyond[:0]], backend, 384)
    check_ids([within, beyond], backend, 391)
    with pytest.raises(ConfigError, match=r"384 output rows of the teacher \(<0> \(id 384\), <6> \(id 390\)\)"):
        check_ids([within, beyond], backend, 384)
    assert cut_ids(backend, 391) == ""
    assert cut_ids(backend, 390) == "<6> (id 390)"
    assert cut_ids(backend, 384).endswith("<4> (id 388) and 2 more")
