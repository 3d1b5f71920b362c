"""What tests of searches share: fewer candidates."""

import pytest

from reflow_tf.jobs.frontier import network_workshop
from reflow_tf.jobs.frontier.candidates import list_candidates


@pytest.fixture
def only(monkeypatch):
    """Lets a search see no other candidates than those of these names."""

    def restrict(*names):
        def few(device, *given, **options):
            return tuple(each for each in list_candidates(device, *given, **options) if each.name in names)

        monkeypatch.setattr(network_workshop, "list_candidates", few)

    return restrict
