"""A Keras model becomes bytes for a device."""
