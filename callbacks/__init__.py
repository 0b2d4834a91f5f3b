"""Lightning callbacks, one file each: they decide when, and leave the what to pure functions."""
