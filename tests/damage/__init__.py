"""The table of damaged input: one function a kind, which makes it and says through which doors it tries to come in."""
