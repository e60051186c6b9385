"""What an operator types; clients of the service."""
