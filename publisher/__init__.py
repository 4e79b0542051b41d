"""Publishing datasets as static files: sources, changes, building trees, stores."""
