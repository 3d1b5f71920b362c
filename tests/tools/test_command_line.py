"""What both command lines have in common: help, flagfiles, exit codes, signals, and what they print."""

import os
import re
import shlex
import signal
import subprocess
import sys

import pytest

from reflow_tf import planning, pruning
from reflow_tf.errors import InputError
from reflow_tf.jobs import pipeline
from reflow_tf.models.zoo.architectures import ARCHITECTURES
from reflow_tf.report import folder
from reflow_tf.tools import (
    benchmark,
    command_line,
    compare,
    device_kit,
    evaluate,
    explain,
    firmware,
    frontier,
    prune,
    setup_runtime,
)

# Every flag of the table in the project's brief.
TABLE = (
    *("model", "weights", "data", "eval_data", "class_names", "preprocess", "sparsity", "pattern", "criterion"),
    *("allocation", "prunable", "target", "repair", "calibration_samples", "batch_size", "seed", "quantize"),
    *("rewrite", "benchmark", "output_dir", "overwrite", "max_accuracy_drop"),
)


def start(tool, *arguments, **keywords):
    return subprocess.run(
        [sys.executable, "-m", f"reflow_tf.tools.{tool}", *arguments], capture_output=True, text=True, **keywords
    )


@pytest.mark.parametrize("tool", [benchmark, compare, device_kit, evaluate, explain, firmware, prune])
def test_help_spells_lists_as_a_command_line_does(command, tool):
    text = command(tool, "--help").out
    assert not re.search(r"\[\]|\['", text) and "repeat this option" not in text
    assert tool is not prune or "(default: m4)" in text


@pytest.mark.parametrize(
    "tool, taken", [(compare, "y"), (device_kit, ""), (evaluate, "y"), (firmware, ""), (prune, "y")]
)
def test_data_is_no_image_where_it_need_not_be(tool, taken):
    told = tool.FLAGS["data"].help
    assert "an .npz with x (inputs of any kind)" in told and not told.startswith("Images")
    assert ("y (class indices)" in told) == bool(taken)
    assert taken or ("agreement" not in told and "default" not in told)
    for name in {"eval_data", "batch_size", "calibration_samples", "num_inputs"} & set(tool.FLAGS):
        assert "image" not in tool.FLAGS[name].help.lower(), name


@pytest.mark.parametrize("tool, flags", [(prune, TABLE), (evaluate, ("model", "data", "class_names", "preprocess"))])
def test_help_is_for_people(command, tool, flags):
    outcome = command(tool, "--help")
    assert outcome.code == 0 and not outcome.err
    lines = outcome.out.splitlines()
    for flag in (*flags, "help", "flagfile"):
        (line,) = [number for number, line in enumerate(lines) if line.strip().split("=")[0] == f"--{flag}"]
        assert len(lines[line + 1].strip()) > 10, "every flag is explained"
    assert max(map(len, lines)) <= 120
    assert f"python -m {tool.__name__}" in outcome.out
    assert "Exit codes: 0 done; 1 " in outcome.out
    assert "None" not in outcome.out and "absl" not in outcome.out


def test_help_tells_the_defaults(command):
    text = command(prune, "--help").out
    for default in ("auto", "global", "target", "xnnpack", "1000"):
        assert f"(default: {default})" in " ".join(text.split())
    assert "magnitude by default. Of channels that" in " ".join(text.split())
    assert "Default: reflow, or none for --sparsity=existing." in " ".join(text.split())
    assert "Default: none for xnnpack, int8 for cpu, none for storage, int8 for tflm" in " ".join(text.split())
    assert "Default: 0.7" in text and "(default: 0)" in text and "Default: ./reflow_out/<model>" in text


@pytest.mark.parametrize(
    "tool, third",
    [
        (
            prune,
            "3 the file missed --max_accuracy_drop, --max_metric_drop or a budget (size, speed, flash, RAM), or a "
            "microcontroller computes something else with it.",
        ),
        (benchmark, "3 outputs differ from LiteRT's."),
        (explain, "3 no pruning and no exact rewriting would make this network run sparse; no channel may go."),
        (evaluate, None),
        (device_kit, None),
        (setup_runtime, None),
    ],
)
def test_help_tells_what_exit_code_3_means_where_there_is_one(command, tool, third):
    lines = " ".join(command(tool, "--help").out.split("\n"))
    told = lines[lines.index("Exit codes: ") :].strip()
    assert told == "Exit codes: 0 done; 1 our own failure; 2 bad flag or input, or interrupted" + (
        f"; {third}" if third else "."
    )


@pytest.mark.parametrize(
    ("flag", "wanted"),
    [
        ("--batch_size=48kB", "--batch_size must be a whole number, such as 1000. Received: 48kB"),
        ("--batch_size=5.0", "--batch_size must be a whole number, such as 1000. Received: 5.0"),
        ("--max_accuracy_drop=2 %", "--max_accuracy_drop must be a number, such as 0.5. Received: 2 %"),
        ("--overwrite=maybe", "--overwrite must be true or false. Received: maybe"),
    ],
)
def test_a_value_of_another_type_is_told_in_our_words(command, flag, wanted):
    outcome = command(prune, "--model=mobilenet_v2", flag)
    assert (outcome.code, outcome.error) == (2, f"error: {wanted}")


@pytest.mark.parametrize(
    ("tool", "said"),
    [
        (prune, "error: interrupted; results are written whole or not at all"),
        (compare, "error: interrupted; results are written whole or not at all; the same command goes on from there"),
        (frontier, "error: interrupted; results are written whole or not at all; the same command goes on from there"),
    ],
)
def test_an_interruption_says_what_becomes_of_the_work(command, monkeypatch, tool, said):
    def interrupt():
        raise KeyboardInterrupt

    monkeypatch.setattr(tool, "read_config", interrupt)
    outcome = command(tool, "--model=mobilenet_v2")
    assert (outcome.code, outcome.error) == (2, said)


@pytest.mark.parametrize("tool", [prune, benchmark, explain, evaluate, device_kit, setup_runtime])
def test_the_first_flag_is_needed_everywhere(command, tool):
    outcome = command(tool)
    first = "runtime" if tool is setup_runtime else "model"
    assert (outcome.code, outcome.error) == (2, f"error: --{first} is needed; see --help. Received: none")


@pytest.mark.parametrize("tool", ["prune", "evaluate"])
def test_help_and_bad_flags_do_not_wait_for_tensorflow(tool):
    code = (
        f"import sys; from reflow_tf.tools import {tool}\n"
        f"assert {tool}.main(['x', '--help']) == 0\n"
        f"assert {tool}.main(['x', '--batch_size=0', '--model=a', '--data=b']) == 2\n"
        "print(sorted({'tensorflow', 'keras', 'ai_edge_litert', 'PIL'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_help_into_a_pipe_that_closes_at_once():
    shell = f"{sys.executable} -m reflow_tf.tools.prune --help | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_flagfile_gives_flags_and_the_command_line_overrules_it(command, tmp_path, monkeypatch):
    file = tmp_path / "flags"
    file.write_text("# a comment\n--model=resnet20\n\n--sparsity=0.25\n--overwrite\n--pattern=block:4x1\n--seed=1\n")
    jobs = []
    monkeypatch.setattr(prune, "prune", lambda job, argv: jobs.append(job) or 0)
    assert command(prune, f"--flagfile={file}", "--seed=2").code == 0
    (job,) = jobs
    assert (job.model, job.prune.sparsity, job.overwrite, str(job.prune.pattern)) == (
        "resnet20",
        0.25,
        True,
        "block:4x1",
    )
    assert job.seed == 2


def test_flags_of_one_call_do_not_reach_the_next(command, monkeypatch):
    jobs = []
    monkeypatch.setattr(prune, "prune", lambda job, argv: jobs.append(job) or 0)
    command(prune, model="resnet20", seed=5, overwrite=True)
    command(prune, model="resnet20")
    assert jobs[1].seed == 0 and not jobs[1].overwrite


@pytest.mark.parametrize(
    "model, output_dir",
    [
        ("mobilenet_v2", "reflow_out/mobilenet_v2"),
        ("a/b/net.keras", "reflow_out/net"),
        ("../net.v2.h5", "reflow_out/net.v2"),
    ],
)
def test_the_output_folder_is_named_after_the_model(command, monkeypatch, model, output_dir):
    jobs = []
    monkeypatch.setattr(prune, "prune", lambda job, argv: jobs.append(job) or 0)
    command(prune, model=model)
    assert jobs[0].output_dir == output_dir


@pytest.mark.parametrize(
    "raised, code, line",
    [
        (InputError("this. Received: that"), 2, "error: this. Received: that"),
        (OSError(5, "Input/output error", "x.png"), 2, "Received: [Errno 5] Input/output error: 'x.png'"),
        (KeyboardInterrupt(), 2, "error: interrupted"),
        (ValueError("a bug"), 1, "error: this is a failure of reflow_tf itself"),
        (MemoryError(), 1, "error: this is a failure of reflow_tf itself"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_exit_codes(command, monkeypatch, raised, code, line):
    def work(job, argv):
        raise raised

    monkeypatch.setattr(prune, "prune", work)
    outcome = command(prune, model="resnet20")
    assert outcome.code == code and line in outcome.err.splitlines()[-1]
    assert ("Traceback" in outcome.err) == (code == 1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_the_signal_handler_goes_with_the_command(command, monkeypatch, number):
    seen = []
    monkeypatch.setattr(prune, "prune", lambda job, argv: seen.append(signal.getsignal(number)) or 0)
    before = signal.signal(number, signal.SIG_DFL)
    try:
        command(prune, model="resnet20")
        assert callable(seen[0]) and signal.getsignal(number) is signal.SIG_DFL
        signal.signal(number, signal.SIG_IGN)  # as nohup does
        command(prune, model="resnet20")
        assert seen[1] is signal.SIG_IGN
    finally:
        signal.signal(number, before)


@pytest.mark.slow
def test_tensorflow_can_still_complain_afterwards(command, monkeypatch):
    """It keeps the stderr that it finds when it is imported; that one must not be a closed file."""
    code = (
        "from reflow_tf.tools import command_line\ncommand_line.start_tensorflow()\n"
        "import tensorflow as tf\ntf.get_logger().error('hear, hear')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.splitlines() == ["ERROR:tensorflow:hear, hear"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_real_signal_while_it_works(inputs, tmp_path, left, finish, number):
    out = tmp_path / "x" / "out"
    # The repair of a small model is over in a moment; this one says where it is and then takes its time.
    code = (
        "import signal, sys, time\nsignal.signal(signal.SIGHUP, signal.SIG_DFL)  # which nohup has ignored\n"
        "from reflow_tf.repair import batchnorm\nfrom reflow_tf.tools import prune\n"
        "def repair(model, batches, **_):\n    print('Recalibrating', flush=True); time.sleep(1000)\n"
        "batchnorm.recalibrate = repair\nsys.exit(prune.main(sys.argv))"
    )
    arguments = [f"--model={inputs.model}", f"--data={inputs.data}", f"--output_dir={out}"]
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "Recalibrating\n", process.stderr.read()
    process.send_signal(number)
    _, err = finish(process)
    assert process.returncode == 2
    assert err.splitlines()[-1].startswith("error: interrupted") and "Traceback" not in err
    assert left() == {}


STAGES = {
    "loading": (pipeline, "load_model"),
    "opening images": (pipeline, "open_sets"),
    "checking weights": (pruning, "check_finite"),
    "planning": (planning, "make_plan"),
    "masking": (planning, "build_masks"),
    "measuring": (pruning, "_measure_signal"),
    "copying": (pruning, "copy_model"),
    "surgery": (pruning, "write_masks"),
    "repairing": (pruning, "_repair"),
    "exporting": (pipeline, "export_tflite"),
    "checking masks": (pipeline, "check_masks"),
    "opening the file": (pipeline, "OpenedFile"),
    "running the file": (pipeline, "rank_files"),
    "comparing": (pipeline, "measure_parity"),
    "describing": (pipeline, "describe"),
    "drawing": (pipeline, "render"),
    "writing": (folder, "_write_file"),
    "renaming": (folder, "_swap"),
}


def test_flags_that_commands_share_have_one_full_help_text():
    tools = [compare, device_kit, evaluate, explain, firmware, prune]
    texts = {}
    for tool in tools:
        for name in tool.FLAGS:
            assert "reflow_tf.tools.prune" not in tool.FLAGS[name].help and len(tool.FLAGS[name].help) > 20, name
            texts.setdefault(name, set()).add(tool.FLAGS[name].help)
    shared = ("weights", "eval_data", "class_names", "image_size", "prunable", "calibration_samples", "batch_size")
    assert {name: len(texts[name]) for name in shared} == dict.fromkeys(shared, 1)
    told = {tool: re.findall(r"\w+", tool.FLAGS["model"].help) for tool in (compare, evaluate, explain, prune)}
    assert all(set(ARCHITECTURES) <= set(words) for words in told.values())


@pytest.mark.parametrize("stage", STAGES)
def test_ctrl_c_in_every_stage(command, inputs, tmp_path, left, monkeypatch, stage):
    place, name = STAGES[stage]
    reached = []

    def interrupt(*args, **kwargs):
        reached.append(stage)
        raise KeyboardInterrupt

    monkeypatch.setattr(place, name, interrupt)
    out = tmp_path / "out"
    out.mkdir()
    for file in pipeline.FILES:
        (out / file).write_text("of an earlier run")
    before = left()
    outcome = command(prune, model=inputs.model, data=inputs.data, output_dir=out, overwrite=True, batch_size=16)
    assert reached and outcome.code == 2 and outcome.error.startswith("error: interrupted")
    assert not outcome.out and left() == before


def untold(err):
    """What is not for people: beside notes, only stages that took over two seconds may be told."""
    told = re.compile(r"note: .*|[A-Z][\w. ]*: [\d.]+\W(s|min)")
    return [line for line in err.splitlines() if not told.fullmatch(line)]


@pytest.mark.slow
def test_running_as_a_module_prints_nothing_that_is_not_for_people(inputs, tmp_path):
    arguments = [f"--model={inputs.model}", f"--data={inputs.data}", f"--preprocess={inputs.preprocess}"]
    done = start("prune", *arguments, "--output_dir=out/", cwd=tmp_path, env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0 and not untold(done.stderr)
    assert done.stdout.splitlines()[-1] == "Wrote out/: open report.html in a browser."
    scored = start("evaluate", "--model=out/model.tflite", f"--data={inputs.heldout}", cwd=tmp_path)
    assert scored.returncode == 0 and not untold(scored.stderr)
    assert scored.stdout.startswith("top-1 ") and scored.stdout.endswith("n = 96\n")


@pytest.mark.slow
def test_printing_survives_a_reader_that_has_seen_enough(tmp_path, inputs):
    """The gate's exit code, too, does not depend on who reads."""
    shell = f"{sys.executable} -c {shlex.quote(_FINISHED)} | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True)
    assert done.returncode == command_line.UNMET and "error: the file lost 5.00 points" in done.stderr


_FINISHED = """
import sys, time
from reflow_tf.jobs import pipeline
from reflow_tf.report import terminal
from reflow_tf.tools import prune
gate = {"passed": False, "drop_points": 5.0, "max_accuracy_drop": 1.0}
pipeline.run = lambda job, command: {"gate": gate, "metric": None, "budget": None, "mcu": None}
terminal.print_summary = lambda report: (time.sleep(0.5), print("x" * 100_000, flush=True))
sys.exit(prune.main(["prune", "--model=resnet20", "--output_dir=x"]))
"""
