"""A long task as a process that works on a folder: its lock, its events, its queue, its end."""
