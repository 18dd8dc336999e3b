"""The command line: one verb for each thing that can be done."""
