"""Sources: what comes from outside the graph, resolved to files that are known by content.

`local` are files of this machine, hashed through the stat cache. All others are remote: they
are resolved once, to digests that FTBUILD.lock records, and fetched only when an action needs
the bytes; then they are verified against the lock and kept in the store as blobs.
"""
