"""The blind user study: two films side by side, questions about them, votes that are never lost."""
