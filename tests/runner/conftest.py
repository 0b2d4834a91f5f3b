import pytest

from tests.runner import laboratory


@pytest.fixture(autouse=True)
def _tiny_classes() -> None:
    laboratory.allow_tests()
