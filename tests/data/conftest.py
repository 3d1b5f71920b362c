"""Small images on disk, made by seed."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def make_pixels(seed, height=10, width=12, channels=3):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels)).astype(np.uint8)


@pytest.fixture
def pixels():
    return make_pixels


@pytest.fixture
def save_image():
    def save(path, seed, height=10, width=12):
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(make_pixels(seed, height, width)).save(path)
        return path

    return save


@pytest.fixture
def class_folder(tmp_path, save_image):
    """Three classes (ant, bee, cow) of four images each."""
    folder = tmp_path / "classes"
    for label, name in enumerate(("ant", "bee", "cow")):
        for number in range(4):
            save_image(folder / name / f"{number}.png", seed=10 * label + number)
    return folder


@pytest.fixture
def class_names(tmp_path):
    """Five classes, in an order that is not the alphabet's."""
    path = tmp_path / "names.txt"
    path.write_text("cow\nemu\nbee\ndog\nant\n")
    return path
