"""What a storage node decides: which claims on its pools it accepts. Pure: no I/O, no clock, no protobuf."""
