"""Arm's Vela compiler (PyPI `ethos-u-vela`): what a file would take on an Ethos-U, estimated and not measured."""
