"""What restores a pruned model; every repair has one signature."""
