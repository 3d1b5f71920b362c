import os
import pty
import subprocess
import sys

import pytest

from reflow_tf.native_stderr import native_stderr_dropped

_PROGRAM = """
import os, sys
from reflow_tf.native_stderr import native_stderr_dropped
print("before", file=sys.stderr)
with native_stderr_dropped():
    os.write(2, b"native")
    print("python", file=sys.stderr)
print("after", file=sys.stderr)
os.write(2, b"native again")
"""


def test_only_the_block_is_silent():
    done = subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True, text=True, check=True)
    assert done.stderr == "before\nafter\nnative again"


def test_an_error_restores_the_descriptor(capfd):
    with pytest.raises(RuntimeError), native_stderr_dropped():
        raise RuntimeError
    os.write(2, b"back")
    assert capfd.readouterr().err == "back"


_STAGE = """
import os, time
from reflow_tf.native_stderr import native_stderr_dropped
from reflow_tf.report.progress import stage
with stage("Exporting", delay_s=0.0), native_stderr_dropped():
    time.sleep(0.5)
    os.write(2, b"native")
print("done")
"""


def test_a_bar_on_a_terminal_is_seen_while_native_code_is_silent():
    main, terminal = pty.openpty()
    done = subprocess.run([sys.executable, "-c", _STAGE], stdout=subprocess.PIPE, stderr=terminal, check=True)
    os.close(terminal)
    shown = os.read(main, 65536)
    os.close(main)
    assert done.stdout == b"done\n"
    assert b"Exporting" in shown and b"native" not in shown
