import os

import pytest

from reflow_tf.crew import ALONE, THREADS, State, count_threads, find_memory


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


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("0::/\n", {"memory.max": "1000"}, 1000),  # version 2, as a container sees itself
        (
            "0::/job/step\n",
            {"job/memory.max": "700", "job/step/memory.max": "max"},
            700,
        ),  # the batch job above has less
        ("0::/job\n", {"job/memory.max": "max"}, None),
        ("9:name=systemd:/\n4:memory:/docker/1\n", {"memory/docker/1/memory.limit_in_bytes": "900"}, 900),  # version 1
        ("4:memory:/docker/1\n", {"memory/memory.limit_in_bytes": "800"}, 800),  # the path is the host's
        ("1:cpu:/a\n", {"memory/a/memory.limit_in_bytes": "800", "a/memory.max": "800"}, None),
        ("4:memory:/\n", {"memory/memory.limit_in_bytes": "9223372036854771712"}, None),  # version 1's word for none
        (None, {}, None),
    ],
)
def test_a_container_has_less_memory_than_its_machine(tmp_path, groups, files, expected):
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if groups is not None:
        (tmp_path / "proc/self").mkdir(parents=True)
        (tmp_path / "proc/self/cgroup").write_text(groups)
    for name, text in files.items():
        path = tmp_path / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    assert find_memory(tmp_path) == (machine if expected is None else expected)
