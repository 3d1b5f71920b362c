"""The ARM wheels themselves, run by QEMU: right outputs and exact instruction counts without an ARM machine."""
