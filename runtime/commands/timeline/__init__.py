"""`vaemotion plot` and `vaemotion report`: a timeline file as a figure or a page."""
