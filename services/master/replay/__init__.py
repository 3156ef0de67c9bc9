"""What a pool of a given size would serve of a recorded trace, by the master's own code beside two references.

`traces` reads, `policies` keep and evict, `figures` runs them and holds what came out, `plots` draws it, `command` is
`larder trace replay`. Nothing of it runs in a master.
"""
