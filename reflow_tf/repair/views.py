"""More to see in the same images: parts of them, scaled back to full size and mirrored, mixed in pairs.

As training does: random resized crops, and "mixup" (Zhang et al., arXiv 1710.09412).
"""

import numpy as np
import tensorflow as tf

LEAST_AREA = 0.35
MOST_STRETCH = 1.25
MOST_MIXED = 0.5
"""Of an image, in a view that is mixed with it."""


def have_views(shape: tuple[int, ...]) -> bool:
    """Whether inputs of this shape, (n, height, width, channels) for images, can be varied."""
    return len(shape) == 4 and min(shape[1:3]) >= 2


def make_view(images: np.ndarray, shard: int, view: int) -> np.ndarray:
    """A varied one of each image, (n, height, width, channels), the same each time.

    Args:
        images: (n, height, width, channels).
        shard: number of these images.
        view: number of the view.
    """
    return vary(images, np.random.default_rng([shard, view]))


def vary(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A random view of each image, mixed with that of another one, which gets at most half; others as they are.

    Args:
        images: (n, height, width, channels), as the network takes them; anything of another rank is returned as it is.
        rng: draws.
    """
    boxes = draw_boxes(rng, len(images), images.shape)
    if boxes is None:
        return images
    views = tf.image.crop_and_resize(images, boxes, np.arange(len(images)), images.shape[1:3]).numpy()
    shares = rng.uniform(0, MOST_MIXED, (len(images), 1, 1, 1)).astype(np.float32)
    return (1 - shares) * views + shares * views[rng.permutation(len(images))]


def draw_boxes(rng: np.random.Generator, count: int, shape: tuple[int, ...]) -> np.ndarray | None:
    """What part of its image each of `count` views shows; None for inputs of a shape that no images have.

    Args:
        rng: draws.
        count: how many.
        shape: of the inputs, (n, height, width, channels) for images.

    Returns:
        (count, 4) float32: y1, x1, y2, x2 in [0, 1], with x2 < x1 for a mirror image.
    """
    if not have_views(shape):
        return None
    side = np.sqrt(rng.uniform(LEAST_AREA, 1, count))
    stretch = np.exp(rng.uniform(-0.5, 0.5, count) * np.log(MOST_STRETCH))
    height, width = np.minimum(side * stretch, 1), np.minimum(side / stretch, 1)
    top, left = rng.uniform(0, 1 - height), rng.uniform(0, 1 - width)
    mirrored = rng.random(count) < 0.5
    boxes = [top, np.where(mirrored, left + width, left), top + height, np.where(mirrored, left, left + width)]
    return np.stack(boxes, axis=1).astype(np.float32)
