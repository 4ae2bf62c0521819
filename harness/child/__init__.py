"""Both sides of a child process: the fork server and the job that the parent hands over, and what the child does with it."""
