"""Files that must type-check, and files whose marked lines must not."""
