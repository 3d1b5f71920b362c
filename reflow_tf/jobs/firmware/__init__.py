"""A folder of C for a microcontroller: the network, a program that proves it, and how to build both."""
