"""The page: widgets and what they are wired to. All that it says and does comes from the core."""
