import errno
import os
import pathlib
import resource

import pytest

from reflow_tf.errors import Breakdown, InputError
from reflow_tf.report import folder as module
from reflow_tf.report.folder import OutputFolder

NAMES = frozenset(("a.txt", "b.bin", "c.made"))
OLD = {"a.txt": "old", "b.bin": b"old", "c.made": lambda path: path.write_text("old")}
NEW = {"a.txt": "näw\n", "b.bin": b"\0\xff", "c.made": lambda path: path.write_text("made")}


@pytest.fixture
def old(tmp_path):
    """A folder of an earlier run."""
    OutputFolder(str(tmp_path / "out"), NAMES).write(OLD)
    return tmp_path / "out"


def is_new(path):
    return {file.name: file.read_bytes() for file in path.iterdir()} == {
        "a.txt": "näw\n".encode(),
        "b.bin": b"\0\xff",
        "c.made": b"made",
    }


@pytest.mark.parametrize(
    "path", ["out", "out/", "x/y/out", "x/../out", "a b/ü ñ/日本", "new\nline", "-dash", "x" * 255]
)
def test_writes_all_files_and_nothing_else(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    OutputFolder(path, NAMES).write(NEW)
    assert is_new(tmp_path / os.path.normpath(path))
    assert not list(tmp_path.rglob(".*"))


def test_nothing_is_made_before_the_results_are_there(tmp_path, left):
    OutputFolder(str(tmp_path / "x" / "out"), NAMES)
    assert left() == {}


def test_a_relative_path_does_not_follow_a_change_of_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = OutputFolder("out", NAMES)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    folder.write(NEW)
    assert is_new(tmp_path / "out")


def test_home_is_spelled_with_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    OutputFolder("~/out", NAMES).write(NEW)
    assert is_new(tmp_path / "out")


def test_others_may_read_what_the_umask_lets_them(tmp_path):
    before = os.umask(0o022)
    try:
        OutputFolder(str(tmp_path / "out"), NAMES).write(NEW)
    finally:
        os.umask(before)
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "out" / "a.txt").stat().st_mode & 0o777 == 0o644


def test_an_empty_folder_may_be_filled(tmp_path):
    (tmp_path / "out").mkdir()
    OutputFolder(str(tmp_path / "out"), NAMES).write(NEW)
    assert is_new(tmp_path / "out")


def test_a_folder_with_results_needs_overwrite(old, left):
    before = left()
    with pytest.raises(InputError, match=rf"--overwrite replaces it. Received: {old}$"):
        OutputFolder(str(old), NAMES)
    assert left() == before
    OutputFolder(str(old), NAMES, overwrite=True).write(NEW)
    assert is_new(old) and os.listdir(old.parent) == ["out"]


def test_overwrite_leaves_foreign_folders_alone(old):
    (old / "thesis.tex").write_text("10 years of work")
    with pytest.raises(InputError, match=r"also holds thesis.tex. Received: --output_dir="):
        OutputFolder(str(old), NAMES, overwrite=True)


def test_overwrite_takes_no_model_of_the_user_for_an_earlier_run(tmp_path):
    (tmp_path / "b.bin").write_bytes(b"the only copy")
    with pytest.raises(InputError, match=r"lacks a.txt. Received: --output_dir="):
        OutputFolder(str(tmp_path), NAMES, overwrite=True)


def test_what_appears_while_the_work_is_done_is_not_replaced(tmp_path, left):
    folder = OutputFolder(str(tmp_path / "out"), NAMES)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("x")
    before = left()
    with pytest.raises(InputError, match="must not exist yet"):
        folder.write(NEW)
    assert left() == before


@pytest.mark.parametrize(
    "make",
    [
        lambda path: path.write_text("a file"),
        lambda path: path.symlink_to(path.parent / "nowhere"),
        lambda path: path.symlink_to("/tmp"),
    ],
    ids=["file", "dangling link", "link"],
)
def test_files_and_links_are_refused(tmp_path, make):
    make(tmp_path / "out")
    with pytest.raises(InputError, match=r"must be a folder. Received: .*/out, a file or a link"):
        OutputFolder(str(tmp_path / "out"), NAMES, overwrite=True)


@pytest.mark.parametrize("path", ["file/out", "file/x/y/out", "/proc/out", "/sys/out"])
def test_where_no_folder_can_be_made_is_said_at_once(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=rf"can be written to \(.+\). Received: .*{path}$"):
        OutputFolder(path, NAMES)


def test_mount_points_and_the_current_folder_cannot_be_renamed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in (".", "/"):
        with pytest.raises(InputError, match="must not be a mount point or the current folder"):
            OutputFolder(path, NAMES, overwrite=True)


def test_other_files_than_announced_are_our_own_mistake(tmp_path, left):
    with pytest.raises(ValueError, match="the files must be") as caught:
        OutputFolder(str(tmp_path / "out"), NAMES).write({"a.txt": ""})
    assert not isinstance(caught.value, InputError) and left() == {}


def test_what_lies_inside(old, monkeypatch):
    folder = OutputFolder(str(old), NAMES, overwrite=True)
    monkeypatch.chdir(old.parent)
    (old.parent / "link").symlink_to(old / "a.txt")
    assert folder.holds("out/a.txt") and folder.holds(str(old / "b.bin")) and folder.holds("link")
    assert not folder.holds("out") and not folder.holds("out/nothing") and not folder.holds(".")


@pytest.mark.parametrize("name", sorted(NAMES))
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt(), ValueError()])
@pytest.mark.parametrize("replaces", [False, True])
def test_a_failure_at_any_file_leaves_no_trace(tmp_path, monkeypatch, left, name, error, replaces):
    path = tmp_path / "x" / "out"
    if replaces:
        OutputFolder(str(path), NAMES).write(OLD)
    before = left()
    write = module._write_file

    def fail(file, content):
        write(file, content)
        if file.name == name:
            raise error

    monkeypatch.setattr(module, "_write_file", fail)
    with pytest.raises(InputError if isinstance(error, OSError) else type(error)) as caught:
        OutputFolder(str(path), NAMES, overwrite=True).write(NEW)
    assert left() == before
    if isinstance(error, OSError):
        assert str(caught.value).endswith(f"(No space left on device). Received: {path}")
        assert caught.type is Breakdown  # and says nothing of what was to be written


@pytest.mark.parametrize("call", [1, 2])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, PermissionError])
def test_a_failure_at_either_rename_leaves_the_old_or_the_new_folder(old, monkeypatch, left, call, after, error):
    folder = OutputFolder(str(old), NAMES, overwrite=True)
    before = left()
    rename = pathlib.Path.rename
    calls = []

    def fail(path, target):
        calls.append(path)
        if len(calls) == call and not after:
            raise error
        rename(path, target)
        if len(calls) == call:
            raise error

    monkeypatch.setattr(pathlib.Path, "rename", fail)
    with pytest.raises((error, InputError)):
        folder.write(NEW)
    assert os.listdir(old.parent) == ["out"]
    if call == 2 and after:
        assert is_new(old)
    else:
        assert left() == before


def test_a_full_disk_for_real(old, left):
    """The system itself refuses to let a file grow."""
    folder = OutputFolder(str(old), NAMES, overwrite=True)
    before = left()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(InputError, match=rf"where the results can be written \(.+\). Received: {old}"):
            folder.write(NEW | {"b.bin": bytes(2000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert left() == before


def test_folders_made_on_the_way_are_taken_back(tmp_path, monkeypatch, left):
    folder = OutputFolder(str(tmp_path / "x" / "y" / "out"), NAMES)

    def refuse(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module.tempfile, "TemporaryDirectory", refuse)
    with pytest.raises(InputError):
        folder.write(NEW)
    assert left() == {}
