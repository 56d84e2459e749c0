"""The catalogue of data sources: one family a file, each entry a function that opens a source."""
