"""Pure NumPy: what shape zeros take, how much a weight matters, how sparse each layer gets."""
