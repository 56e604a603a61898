"""Every architecture holds what a load guarantees, or is refused, as the table in rskd/models/README.md says."""

import pytest
import transformers
from architecture_support import committed, measure
from made_architectures import MODEL_TYPES

COMMITTED = committed()
pytestmark = pytest.mark.architectures


@pytest.fixture(autouse=True)
def _quiet():
    transformers.logging.set_verbosity_error()


@pytest.mark.parametrize("model_type", sorted(MODEL_TYPES))
def test_an_architecture_is_supported_or_refused_as_the_table_says(model_type):
    assert measure(model_type) == COMMITTED[model_type]
