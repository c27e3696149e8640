"""mae-pipe's built-in plugins, installed through the same door as anybody's."""
