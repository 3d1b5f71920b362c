import json
import os
import pathlib
import subprocess
import sys

import pytest

from reflow_tf.export.tflite import export_tflite
from reflow_tf.jobs import benchmark as floor
from reflow_tf.runtimes.litert import LiteRT
from reflow_tf.tools import benchmark


@pytest.fixture(scope="module")
def model(settled, tmp_path_factory):
    path = tmp_path_factory.mktemp("files") / "model.tflite"
    path.write_bytes(export_tflite(settled[0], storage="dense").content)
    return path


def test_a_table_and_a_file(command, model, tmp_path):
    output = tmp_path / "result.json"
    done = command(
        benchmark, f"--model={model}", f"--model={model}", baseline=model, runtime="litert", rounds=5, output=output
    )
    assert (done.code, done.err) == (0, "")
    head, about, empty, titles, *rows = done.out.splitlines()
    assert head.startswith("LiteRT 2.") and about == "ms an inference, median of 5 after 20 of warm-up" and not empty
    assert titles.split() == ["cost", "quartiles", "faster", "quartiles", "difference"]
    assert len(rows) == 3 and all(row.startswith(str(model)) for row in rows)
    assert "baseline" in rows[0] and rows[1].count("x") >= 3
    found = json.loads(output.read_text())
    assert found["unit"] == "ms" and len(found["files"]) == 2
    assert len(found["baseline"]["costs"]) == 5 and found["baseline"]["size_bytes"] == model.stat().st_size
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


def test_tensorflow_is_not_started(model):
    code = (
        "import sys\nfrom reflow_tf.tools import benchmark\n"
        f"code = benchmark.main(['', '--model={model}', '--runtime=litert', '--rounds=1', '--warm_up=0'])\n"
        "sys.exit(code or 'tensorflow' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_counts_have_no_quartiles(command, model, monkeypatch):
    class Counted(LiteRT):
        name, unit = "counted", "instructions"

        def measure(self):
            return 1234567890.0

    monkeypatch.setitem(floor.RUNTIMES, "aarch64", lambda candidates, *_: [Counted(one.content) for one in candidates])
    done = command(benchmark, model=model, runtime="aarch64")
    assert done.code == 0
    assert done.out.splitlines()[0:2] == ["counted", "million instructions an inference, counted"]
    assert done.out.splitlines()[-1].split() == [str(model), "1,234.57", "0.0e+00"]


def test_other_outputs_are_an_error(command, model, monkeypatch, tmp_path):
    class Wrong(LiteRT):
        def run(self, batch):
            return super().run(batch)[:, ::-1]

    monkeypatch.setitem(floor.RUNTIMES, "web", lambda candidates, *_: [Wrong(one.content) for one in candidates])
    done = command(benchmark, model=model, rounds=1, warm_up=0, output=tmp_path / "a.json")
    assert done.code == 3
    assert done.error.startswith("error: the outputs must be LiteRT's but for rounding. Received: ")
    assert f"{model} is off by 1 of the largest (0.001 is rounding)" in done.error
    assert (tmp_path / "a.json").is_file() and "difference" in done.out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"model": None}, "--model is needed"),
        ({"model": "/no/such.tflite"}, "readable file. Received: /no/such.tflite"),
        ({"model": "/"}, "Is a directory"),
        ({"model": __file__}, "must carry the identifier TFL3"),
        ({"baseline": "/no/such.tflite"}, "Received: /no/such.tflite"),
        ({"runtime": "tpu"}, "web, aarch64, litert. Received: tpu"),
        ({"rounds": 0}, "--rounds must be at least 1"),
        ({"warm_up": -1}, "--warm_up must be at least 0"),
        ({"threads": 0}, "--threads must be from 1 to 256"),
        ({"threads": 100_000}, "--threads must be from 1 to 256. Received: 100000"),
        ({"output": "/no/folder/x.json"}, "a folder that exists"),
        ({"output": "/"}, "--output must be a file"),
    ],
)
def test_bad_input(command, model, flags, message):
    given = {name: value for name, value in ({"model": model} | flags).items() if value is not None}
    done = command(benchmark, **given)
    assert done.code == 2 and message in done.error and not done.out


def test_what_is_measured_is_not_written_over(command, model, tmp_path):
    before = pathlib.Path(model).read_bytes()
    (tmp_path / "linked.json").symlink_to(model)
    for output, flags in ((model, {}), (tmp_path / "linked.json", {}), (model, {"baseline": model})):
        done = command(benchmark, model=model, output=output, rounds=3, **flags)
        assert done.code == 2 and "--output must not be a file that is read. Received: " in done.error
    assert pathlib.Path(model).read_bytes() == before


def test_a_link_is_followed_and_what_is_no_file_stays(command, model, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    done = command(benchmark, model=model, output=tmp_path / "pipe")
    assert done.code == 2 and "--output must be a file, new or to be replaced. Received: " in done.error
    assert (tmp_path / "pipe").is_fifo()
    (tmp_path / "link.json").symlink_to(tmp_path / "there.json")
    assert command(benchmark, model=model, runtime="litert", output=tmp_path / "link.json", rounds=3).code == 0
    assert (tmp_path / "link.json").is_symlink() and json.loads((tmp_path / "there.json").read_text())


def test_a_runtime_that_is_not_set_up(command, model, monkeypatch, tmp_path):
    pytest.importorskip("playwright", reason="pip install playwright")
    monkeypatch.setenv("REFLOW_TF_CACHE", str(tmp_path))
    program = tmp_path / "chromium"
    program.write_text("")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    done = command(benchmark, model=model)
    assert done.code == 2 and "setup_runtime --runtime=web" in done.error
