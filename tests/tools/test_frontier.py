"""The command line of the search: bad flags answer at once, in a line, and harm nothing."""

import pytest

from reflow_tf.errors import InputError
from reflow_tf.jobs.frontier import search
from reflow_tf.tools import frontier


@pytest.mark.parametrize(
    "flags, message",
    [
        ([], "error: --device is needed; see --help"),
        (["--device=toaster"], "--device must be one of phone, phone_old, "),
        (["--device=tflm,tflm"], "--device must name at least one device, and each once. Received: tflm,tflm"),
        (["--device="], "--device is needed; see --help. Received: none"),
        (["--device=tflm,phone", "--flash_budget=9"], "a --device that is a microcontroller. Received: --device=phone"),
        (
            ["--device=phone", "--ram_budget=1000"],
            "a --device that is a microcontroller. Received: --device=phone",
        ),
        (["--device=tflm", "--repair=none"], "--repair must be one: without it nothing that is pruned can win."),
        (["--device=tflm", "--repair=glue"], "--repair must be one of none, reflow, "),
        (["--device=tflm", "--minutes=0"], "--minutes must be over 0. Received: 0"),
        (["--device=tflm", "--minutes=nan"], "--minutes must be over 0. Received: nan"),
        (["--device=tflm", "--max_accuracy_drop=-1"], "--max_accuracy_drop must be from 0 to 100. Received: -1"),
        (["--device=tflm", "--data=nowhere"], "nowhere"),
    ],
)
def test_bad_flags(command, inputs, tmp_path, monkeypatch, left, flags, message):
    monkeypatch.chdir(tmp_path)
    outcome = command(frontier, f"--model={inputs.model}", *flags)
    assert outcome.code == 2 and message in outcome.error and not outcome.out


def test_what_one_device_refuses_comes_after_what_the_others_found(command, inputs, tmp_path, monkeypatch):
    refused = InputError("--device=size must be able to run the network. Received: none")
    monkeypatch.setattr(search, "run", lambda *_: search.Found({"tflm": {"answer": None}}, (refused, refused)))
    monkeypatch.setattr(frontier, "format_table", lambda document: ["the table"])
    monkeypatch.setattr(frontier, "headline", lambda document: "In TFLM nothing fits.")
    flags = [f"--model={inputs.model}", f"--data={inputs.data}", "--device=tflm,size", f"--output_dir={tmp_path / 'o'}"]
    outcome = command(frontier, *flags)
    assert outcome.code == 2 and outcome.out.startswith("the table\n\nWrote ") and "tflm" in outcome.out
    assert outcome.err.splitlines()[-3:] == ["error: In TFLM nothing fits.", *[f"error: {refused}"] * 2]


def test_help_names_every_device(command):
    text = command(frontier, "--help").out
    assert all(name in text for name in frontier.DEVICES) and max(map(len, text.splitlines())) <= 120
