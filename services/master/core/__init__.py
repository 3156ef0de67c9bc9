"""The master's decisions as a state machine: `Master.step(now_ms, command) -> effects`.

Nothing here awaits, reads a clock, draws a random number, imports protobuf or iterates over a set: time comes in with
each command, and what is to be done goes out as effects. The driver carries them out and brings the outcomes back as
commands.
"""
