"""One module or package for each `vaemotion` command of the device."""
