"""Workers by Dask: processes on this machine, or those of a scheduler that is already there."""
