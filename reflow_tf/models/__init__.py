"""The only code that walks Keras models."""
