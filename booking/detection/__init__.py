"""Act I, detection: does it overlap? One data structure a file, all behind `Calendar`."""
