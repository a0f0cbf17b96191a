"""The examples in the docstrings of the public functions give what they say."""

import doctest
from types import ModuleType

import pytest

from softxent import _loss, _threads

pytestmark = pytest.mark.usefixtures("level")


@pytest.mark.parametrize("module", [_loss, _threads], ids=lambda module: module.__name__)
def test_docstring_examples(module: ModuleType) -> None:
    results = doctest.testmod(module)
    assert results.attempted > 0
    assert results.failed == 0
