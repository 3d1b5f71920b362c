"""TensorFlow Lite for Microcontrollers, the very interpreter, on this machine."""
