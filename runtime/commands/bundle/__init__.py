"""`vaemotion bundle`: inspect a bundle, compare two."""
