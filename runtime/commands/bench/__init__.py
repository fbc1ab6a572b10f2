"""`vaemotion bench`: the cost of each file of a bundle on this machine."""
