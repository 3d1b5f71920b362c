"""The architectures that the tool knows by name."""
