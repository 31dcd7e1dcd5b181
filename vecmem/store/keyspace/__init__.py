"""Values by key: the key-value half of the state. One module a data structure, each a table of operations.

`keyspace` holds the values and their expiry; `operation` is what a module of operations is made of; `operations` is the table of
all of them, and runs them.
"""
