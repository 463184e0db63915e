"""The Litestar application: the booking service over HTTP, and its command line."""
