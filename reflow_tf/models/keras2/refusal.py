"""The one exception of the translation: something in the file has no equal in Keras 3."""


class Untranslatable(ValueError):
    """What Keras 2 meant, Keras 3 has no word for.

    Args:
        layer: the layer's name in the file.
        reason: the rest of the sentence 'layer ... has ...', argument and value included.
    """

    def __init__(self, layer: str, reason: str):
        super().__init__(f"layer {layer!r} {reason}")
