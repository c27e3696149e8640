"""The built-in recipes: one TOML file each, complete in itself."""
