"""What a server for many visitors needs: workspaces, limits, the scheduler, the model cache, cleanup."""
