"""An int8 model becomes C99 for microcontrollers: readable, without dependencies, and equal bit for bit."""
