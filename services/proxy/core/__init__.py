"""The proxy's decisions without I/O: which engine next (routing), and what the prefill engine is asked (legs)."""
