"""States that joint training explains: of the planted world, of files, with candidates."""
