"""Data: record types, their sources and splits, and the chat format. Builds on `errors` and `files` only."""
