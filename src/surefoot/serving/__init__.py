"""A reward source behind HTTP, in the formats that training engines speak (docs/server.md)."""
