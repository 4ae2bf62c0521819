"""What happens inside a child process, and the fork server that starts it."""
