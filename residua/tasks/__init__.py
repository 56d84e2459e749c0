"""What a network is asked: one task a file, with its loss and what is counted of each sample. Layer 2."""
