import os
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


def test_native_output_is_dropped_and_pythons_arrives():
    done = subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True, text=True, check=True)
    assert done.stderr == "before\npython\nafter\nnative again"


def test_an_error_restores_the_descriptor(capfd):
    with pytest.raises(RuntimeError), native_stderr_dropped():
        raise RuntimeError
    os.write(2, b"back")
    assert capfd.readouterr().err == "back"
