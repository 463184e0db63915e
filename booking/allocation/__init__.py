"""Act III, allocation: who is free? In memory behind `Roster`, in SQL behind `Allocator`."""
