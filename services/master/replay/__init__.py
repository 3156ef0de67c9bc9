"""What pools of given sizes would serve of a recorded trace: by the master's own code, and by two references.

`traces` reads, `policies` keep and evict, `figures` runs them and holds what came out, `plots` draws it, `command` is
`larder trace replay`. None of it runs in a master.
"""
