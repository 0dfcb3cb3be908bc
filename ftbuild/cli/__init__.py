"""The command line: one command, one file; it parses, calls `Project` and prints."""
