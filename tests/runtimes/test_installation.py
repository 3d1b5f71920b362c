import base64
import errno
import hashlib
import os
import pathlib
import re
import threading

import pytest

from reflow_tf.errors import InputError
from reflow_tf.runtimes import installation


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("REFLOW_TF_CACHE", str(folder))
    return folder


def integrity_of(content, algorithm="sha512"):
    return f"{algorithm}-{base64.b64encode(hashlib.new(algorithm, content).digest()).decode()}"


def everything(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_the_cache_is_in_the_home_folder_unless_named(cache, monkeypatch, tmp_path):
    assert installation.cache_folder() == cache
    monkeypatch.delenv("REFLOW_TF_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert installation.cache_folder() == tmp_path / ".cache" / "reflow_tf"


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_a_download_is_checked(tmp_path, algorithm):
    (tmp_path / "source").write_bytes(b"content" * 1000)
    target = tmp_path / "target"
    installation.download(f"file://{tmp_path}/source", integrity_of(b"content" * 1000, algorithm), target)
    assert target.read_bytes() == b"content" * 1000


def test_a_download_that_fails_leaves_what_was_there(tmp_path):
    (tmp_path / "source").write_bytes(b"forged")
    target = tmp_path / "target"
    target.write_text("before")
    with pytest.raises(InputError, match=r"must have the checksum sha512-.*Received: sha512-"):
        installation.download(f"file://{tmp_path}/source", integrity_of(b"genuine"), target)
    with pytest.raises(InputError, match=r"needs file:///.*once\. Received: .*No such file"):
        installation.download(f"file://{tmp_path}/missing", integrity_of(b""), target)
    assert target.read_text() == "before"
    assert everything(tmp_path) == ["source", "target"]


def test_no_connection_is_one_sentence(tmp_path):
    with pytest.raises(InputError, match=r"needs http://127\.0\.0\.1:9/x, once\. Received: "):
        installation.download("http://127.0.0.1:9/x", integrity_of(b""), tmp_path / "x")


def test_a_checksum_must_be_spelled_out(tmp_path):
    for wrong in ("md5-abc", "sha512", "", "sha512-"):
        with pytest.raises(ValueError, match="sha256-BASE64"):
            installation.download("file:///dev/null", wrong, tmp_path / "x")


def test_what_is_installed_is_not_built_again(cache):
    calls = []

    def build(folder):
        calls.append(folder)
        (folder / "file").write_text("built")

    first = installation.install("thing-1", build)
    assert first == cache / "thing-1"
    assert (first / "file").read_text() == "built"
    assert installation.install("thing-1", build) == first
    assert len(calls) == 1
    assert everything(cache) == ["thing-1", "thing-1/file"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, InputError, OSError])
def test_a_build_that_stops_leaves_nothing(cache, error):
    def build(folder):
        (folder / "half").write_text("x")
        raise error("stopped")

    with pytest.raises(error):
        installation.install("thing-1", build)
    assert everything(cache) == []
    assert installation.install("thing-1", lambda folder: None).is_dir()


def test_two_at_once_end_in_one_folder(cache):
    together = threading.Barrier(2, timeout=300)
    found = []

    def build(folder):
        (folder / "file").write_text("built")
        together.wait()  # both are past the question whether it is there

    def start():
        found.append(installation.install("thing-1", build))

    threads = [threading.Thread(target=start) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [cache / "thing-1"] * 2
    assert everything(cache) == ["thing-1", "thing-1/file"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES])
def test_what_the_file_system_refuses_is_said(cache, monkeypatch, number):
    def refuse(path, target):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(pathlib.Path, "rename", refuse)
    with pytest.raises(InputError, match=re.escape(f"Received: {cache}/thing-1 ({os.strerror(number)})")):
        installation.install("thing-1", lambda folder: None)
    assert everything(cache) == []


def test_a_cache_that_is_no_folder(cache):
    cache.write_text("a file")
    with pytest.raises(InputError, match=r"cache must be a folder.*REFLOW_TF_CACHE.*Received: "):
        installation.install("thing-1", lambda folder: None)


def test_the_digest_sees_every_part_and_its_limits():
    digests = {installation.digest_of(*parts) for parts in (("a", "b"), ("ab",), ("a", b"c"), ("b", "a"), ())}
    assert len(digests) == 5
    assert installation.digest_of("a") == installation.digest_of(b"a")
    assert all(len(digest) == 16 for digest in digests)


def test_missing_programs_come_with_the_line_that_brings_them():
    installation.require_programs({"sh": "dash"}, "This test")
    with pytest.raises(
        InputError,
        match=r"This test needs sh, no-such-a, no-such-b: apt-get install -y --no-install-recommends aa bb\. "
        r"Received: no no-such-a, no no-such-b on the PATH",
    ):
        installation.require_programs({"sh": "dash", "no-such-a": "bb", "no-such-b": "aa"}, "This test")


def test_a_program_that_fails_is_quoted():
    assert installation.call(["sh", "-c", "echo said"], "Saying") == "said\n"
    assert installation.call(["sh", "-c", "echo $TMPDIR"], "Saying", "/scratch") == "/scratch\n"
    with pytest.raises(InputError, match=r"Saying failed: sh must succeed\. Received: exit code 3; the reason"):
        installation.call(["sh", "-c", "echo the reason >&2; exit 3"], "Saying")
