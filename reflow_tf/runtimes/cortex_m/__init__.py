"""C sources, compiled for microcontrollers and run by QEMU: exact outputs and exact instruction counts, no board."""
