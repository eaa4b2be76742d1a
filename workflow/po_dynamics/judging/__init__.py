"""Asking judges that cost something: a model behind an endpoint, a model in this process."""
