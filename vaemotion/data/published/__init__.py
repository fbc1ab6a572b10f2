"""Published data sets as manifests."""
