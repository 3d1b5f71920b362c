import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


@pytest.mark.slow
def test_pruned_networks_are_trained_on():
    command = [sys.executable, str(EXAMPLES / "fine_tune.py"), "--epochs=1", "--images=1000"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    scores = [float(text) for text in re.findall(r"([\d.]+)% trained on", ran.stdout)]
    assert len(scores) == 2 and min(scores) > 70
