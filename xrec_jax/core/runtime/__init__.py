"""The process: start, signals, terminal, memory, and the other processes of a run."""
