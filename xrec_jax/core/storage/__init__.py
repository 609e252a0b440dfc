"""Files: atomic writes, JSON lines, checksums, locks, marks, and what a full disk says."""
