"""A run as a folder for others: exported, checked, imported, pushed to the Hub."""
