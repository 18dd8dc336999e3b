"""Text from a run, token by token, with what was retrieved for it."""
