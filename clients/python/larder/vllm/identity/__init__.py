"""What tells KV bytes apart: the engine's settings, its weights, its adapters, and what a request brings along.

Whatever decides a block's bytes is in its key, by content and never by a name alone; what cannot be told by content is
neither looked up nor saved (invariant 15). Wrong here is wrong answers, so doubt always means a cold cache.
"""
