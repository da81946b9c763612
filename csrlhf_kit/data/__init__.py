"""Data: record types, their sources, and the chat format that turns them into token ids."""
