import pytest

from reflow_tf.errors import InputError
from reflow_tf.runtimes.aarch64 import machine
from reflow_tf.tools import setup_runtime


def test_what_is_set_up_is_named(command, monkeypatch, tmp_path):
    monkeypatch.setitem(setup_runtime.SET_UPS, "aarch64", lambda: tmp_path / "there")
    outcome = command(setup_runtime, runtime="aarch64")
    assert (outcome.code, outcome.out) == (0, f"aarch64 is set up in {tmp_path}/there\n")


@pytest.mark.usefixtures("aarch64")
def test_the_second_time_is_instant_and_changes_nothing(command, monkeypatch):
    monkeypatch.setattr(machine, "_build", None)  # whoever builds again fails
    assert command(setup_runtime, runtime="aarch64").out == f"aarch64 is set up in {machine.set_up()}\n"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({}, "--runtime is needed; see --help. Received: none"),
        ({"runtime": "arm"}, "--runtime must be one of web, aarch64. Received: arm"),
    ],
)
def test_bad_flags(command, flags, message):
    outcome = command(setup_runtime, **flags)
    assert (outcome.code, outcome.error) == (2, f"error: {message}")


def test_missing_programs_are_named_with_the_line_that_brings_them(command, monkeypatch, tmp_path):
    monkeypatch.setenv("REFLOW_TF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path))
    outcome = command(setup_runtime, runtime="aarch64")
    assert outcome.code == 2
    assert "apt-get install -y --no-install-recommends apt dpkg gcc libc6-dev qemu-user" in outcome.error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("aarch64")
@pytest.mark.parametrize(
    ("step", "error"), [("_unpack_debian", KeyboardInterrupt), ("_unpack_wheels", InputError("another checksum"))]
)
def test_a_set_up_that_stops_half_way_leaves_nothing(command, monkeypatch, tmp_path, step, error):
    def stop(folder, workplace):
        folder.mkdir()
        (folder / "half").write_text("x")
        raise error

    monkeypatch.setenv("REFLOW_TF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(machine, "_unpack_debian", lambda root, workplace: root.mkdir())
    monkeypatch.setattr(machine, step, stop)
    outcome = command(setup_runtime, runtime="aarch64")
    assert (outcome.code, outcome.out) == (2, "")
    assert [path.name for path in (tmp_path / "cache").rglob("*")] == []
    assert not machine.is_set_up()
