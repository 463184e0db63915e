"""What the recipes stand on: tables, engine, the transaction, the embedded server."""
