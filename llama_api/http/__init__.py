"""What any Flask service under gunicorn needs."""
