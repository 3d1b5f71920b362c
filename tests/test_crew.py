import pytest

from reflow_tf.crew import ALONE, THREADS, State, count_threads


class Doubling:
    """A work, and its own state."""

    def __init__(self):
        self.heard, self.is_closed = [], False

    def prepare(self):
        outer = self

        class Here(State):
            def __call__(self, items):
                return (2 * item for item in items)

            def hear(self, news):
                outer.heard.append(news)

            def close(self):
                outer.is_closed = True

        return Here()


def test_who_is_alone_does_one_item_after_the_other():
    work = Doubling()
    read = []
    with ALONE.begin(work) as site:
        found = site.map(read.append(item) or item for item in (1, 2, 3))
        assert site.is_here and next(found) == 2 and read == [1], "the next one is not asked for before its turn"
        assert list(found) == [4, 6]
        assert list(site.map_as_done([5, 6])) == [(0, 10), (1, 12)]
        site.tell("news")
        assert work.heard == ["news"] and not work.is_closed
    assert work.is_closed


def test_a_work_is_given_back_whatever_happens():
    work = Doubling()
    with pytest.raises(KeyboardInterrupt), ALONE.begin(work):
        raise KeyboardInterrupt
    assert work.is_closed


@pytest.mark.parametrize(("given", "counted"), [("3", 3), ("", None), ("0", None), ("many", None)])
def test_threads_are_those_that_tensorflow_is_given(monkeypatch, given, counted):
    monkeypatch.setenv(THREADS, given)
    assert count_threads() == counted or (counted is None and count_threads() >= 1)
