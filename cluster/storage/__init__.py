"""One verb, `create`, on local folders and object stores; the driver's lock."""
