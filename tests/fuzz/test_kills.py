"""Every file operation at which a run without a language model can be killed."""

import pytest

from tests.test_kill_walk import differing, walked  # noqa: F401 (a fixture)

pytestmark = pytest.mark.slow


def test_every_kill_changes_nothing(walked):  # noqa: F811
    assert differing(walked, walked.states) == {}
