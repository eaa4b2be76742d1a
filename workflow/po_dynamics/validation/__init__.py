"""G held against trainings that leave a component, or half of the pairs, out."""
