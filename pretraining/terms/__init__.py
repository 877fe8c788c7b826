"""Loss terms, one family a file; each takes the shared encoder view and gives one number."""
