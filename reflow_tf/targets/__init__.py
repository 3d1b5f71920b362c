"""What each kind of hardware rewards."""
