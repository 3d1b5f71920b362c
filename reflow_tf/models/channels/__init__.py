"""Which axes of which variables number the same channels, and what may be done to such a group without a trace."""
