"""Channels removed: which can go, what each costs, which go for a share of the multiply-adds, and the proof."""
