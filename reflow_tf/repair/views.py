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
    if images.ndim != 4 or count <= 0 or images.shape[-1] not in (1, 3):
        return images
    rng = np.random.default_rng(seed)
    side = np.sqrt(rng.uniform(LEAST_AREA, 1, count))
    stretch = np.exp(rng.uniform(-1, 1, count) * np.log(MOST_STRETCH) / 2)
    height, width = np.minimum(side * stretch, 1), np.minimum(side / stretch, 1)
    top, left = rng.uniform(0, 1 - height + 1e-9), rng.uniform(0, 1 - width + 1e-9)
    boxes = np.stack([top, left, top + height, left + width], axis=1)
    mirrored = rng.random(count) < 0.5
    boxes[mirrored] = boxes[mirrored][:, [0, 3, 2, 1]]
    views = tf.image.crop_and_resize(images, boxes, np.arange(count), images.shape[1:3])
    return np.concatenate([images, views.numpy()])
