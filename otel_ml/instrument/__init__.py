"""One folder or file a framework; each imports its framework only after the program did."""
