"""Every key of a configuration, declared once: name, type, default, bounds and meaning."""
