"""Pool, migrations, named SQL and the one `post`."""
