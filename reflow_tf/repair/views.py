"""More to see in the same images: parts of them, scaled back to full size and mirrored, as training does."""

import numpy as np
import tensorflow as tf

LEAST_AREA = 0.35
MOST_STRETCH = 1.25


def add_views(images: np.ndarray, most: int, *, seed: int = 0) -> np.ndarray:
    """The images, and as many random views of the first of them as fit; other inputs than images are left alone.

    Args:
        images: (n, height, width, channels), as the network takes them; anything of another rank is returned as it is.
        most: how many there may be in all.
        seed: of the draw.
    """
    count = min(len(images), most - len(images))
    boxes = draw_boxes(np.random.default_rng(seed), max(count, 0), images.shape)
    if boxes is None or not len(boxes):
        return images
    views = tf.image.crop_and_resize(images, boxes, np.arange(count), images.shape[1:3])
    return np.concatenate([images, views.numpy()])


def draw_boxes(rng: np.random.Generator, count: int, shape: tuple[int, ...]) -> np.ndarray | None:
    """What part of its image each of `count` views shows; None for inputs of a shape that no images have.

    Args:
        rng: draws.
        count: how many.
        shape: of the inputs, (n, height, width, channels) for images.

    Returns:
        (count, 4) float32: y1, x1, y2, x2 in [0, 1], with x2 < x1 for a mirror image.
    """
    if len(shape) != 4 or min(shape[1:3]) < 2:
        return None
    side = np.sqrt(rng.uniform(LEAST_AREA, 1, count))
    stretch = np.exp(rng.uniform(-0.5, 0.5, count) * np.log(MOST_STRETCH))
    height, width = np.minimum(side * stretch, 1), np.minimum(side / stretch, 1)
    top, left = rng.uniform(0, 1 - height), rng.uniform(0, 1 - width)
    mirrored = rng.random(count) < 0.5
    boxes = [top, np.where(mirrored, left + width, left), top + height, np.where(mirrored, left, left + width)]
    return np.stack(boxes, axis=1).astype(np.float32)
