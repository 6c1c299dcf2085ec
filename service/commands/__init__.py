"""The `phalar` command, one file a command, and the HTTP client they use."""
