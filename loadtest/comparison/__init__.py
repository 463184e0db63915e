"""The comparison: contenders under load, audited, and what it looks like to a person."""
