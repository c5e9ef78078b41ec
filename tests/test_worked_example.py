import json
from pathlib import Path

import numpy as np
import pytest
import worked_example

GOLDEN = Path(__file__).parent / "golden" / "worked_example.json"


def test_ten_losses_of_the_guides_example_equal_pytorchs(minilm):
    found = worked_example.losses(str(minilm), dropout=0.0)
    np.testing.assert_allclose(found, json.loads(GOLDEN.read_text()), rtol=1e-3)
    assert found == sorted(found, reverse=True)


@pytest.mark.parity
def test_the_golden_losses_are_pytorchs(minilm):
    from torch_reference import worked_example as in_pytorch

    np.testing.assert_allclose(
        in_pytorch(str(minilm), worked_example.head_values(384, 2)), json.loads(GOLDEN.read_text()), rtol=1e-4
    )
