"""What a site asks of Dask, without any Dask: how far it goes ahead, and whom it believes."""

import dataclasses
import pickle

import pytest

pytest.importorskip("distributed", reason="pip install 'reflow_tf[cluster]'")

from reflow_tf.cluster import desk
from reflow_tf.cluster.census import Resident, make_probe
from reflow_tf.cluster.site import AHEAD, DaskSite
from reflow_tf.errors import Breakdown, InputError


class Future:
    def __init__(self, key, payload):
        self.key, self.status, self._payload = key, "finished", payload
        self.client = type("Client", (), {"status": "closed"})

    def add_done_callback(self, tell):
        self.tell = lambda: tell(self)

    def result(self, timeout):
        return pickle.loads(self._payload) * 10


class Slow(DaskSite):
    """Whoever has the first item is slow; all others are done at once."""

    def __init__(self, num_homes):
        self._num_homes, self._homes = num_homes, ["home"] * num_homes
        self.begun = []

    def _settle(self, live=None):
        pass

    def _submit(self, payload, home, key, *, stays):
        future = Future(key, payload)
        self.begun.append(future)
        return future

    def _look_after(self, batch):
        """Called where nothing comes back: all that were begun are done, the first one last."""
        self.most = max(len(self.begun), getattr(self, "most", 0))
        for future in [*self.begun[1:], *self.begun[:1]]:
            future.tell()
        self.begun = []


@pytest.mark.parametrize("home", [None, lambda item: item])
def test_no_item_is_begun_far_ahead_of_one_that_is_not_done(home, monkeypatch):
    monkeypatch.setattr("reflow_tf.cluster.site.POLL_S", 0.001)
    site = Slow(num_homes=3)
    assert list(site.map(range(100), home)) == [10 * item for item in range(100)]
    assert site.most == 3 * AHEAD
    site = Slow(num_homes=3)
    assert sorted(site.map_as_done(list(range(100)))) == [(item, 10 * item) for item in range(100)]
    assert site.most == 100


@pytest.mark.parametrize("kind", [InputError, Breakdown])
def test_what_a_worker_refuses_is_refused_here_and_what_broke_down_there_broke_down(kind):
    site = Slow(num_homes=1)
    failed = Future("key", b"")
    failed.status, failed.exception = "error", lambda: kind("There must be room. Received: none")
    with pytest.raises(InputError, match=r"^There must be room\. Received: none \(in a worker\)$") as caught:
        site._read(failed)
    assert caught.type is kind


def test_whoever_comes_later_with_other_code_computes_nothing():
    here = Resident(**make_probe()())
    other = dataclasses.replace(here, versions={**here.versions, "reflow_tf": "0.0 (code 12345678)"})
    with pytest.raises(InputError, match=r"Workers must have the reflow_tf of this process, 0\.0 \(code 12345678\)"):
        desk.do("work", 1, other, [], b"")
