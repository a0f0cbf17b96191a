"""What all tests share: every level that this machine has, and how hypothesis runs."""

import os
from collections.abc import Iterator

import pytest
import threadpoolctl
from hypothesis import settings

from softxent import _dispatch, _loss

pytest.register_assert_rewrite("support")

settings.register_profile("default", deadline=None, max_examples=100)
settings.register_profile("ci", settings.get_profile("default"), derandomize=True)
settings.register_profile("few", settings.get_profile("ci"), max_examples=10)  # for .ci/sanitize: each takes long
settings.load_profile("ci" if os.environ.get("CI") else "default")


@pytest.fixture
def several_threads() -> Iterator[None]:
    """Calls may use up to seven threads, however few CPUs there are."""
    with threadpoolctl.threadpool_limits(7, user_api="openmp"):
        yield


@pytest.fixture(scope="module", params=_dispatch.usable_levels())
def level(request: pytest.FixtureRequest) -> Iterator[str]:
    """The public functions compute with the kernels of this level. Of module scope, so that hypothesis may use it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_loss, "_kernels", _dispatch.load(request.param))
        yield request.param
