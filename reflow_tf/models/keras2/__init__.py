"""Model files that Keras 2 saved, as models of Keras 3: configuration translated, weights read as they are."""
