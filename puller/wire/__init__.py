"""The wire format (SPEC.md): bytes to values and back. No I/O, no clock."""
