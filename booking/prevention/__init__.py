"""Act II, prevention: what if two ask at once? One recipe a file, all behind `Ledger`."""
