"""What people use: the client and the commands."""
