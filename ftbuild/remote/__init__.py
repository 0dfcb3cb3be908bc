"""Remote stores: the same blobs and records, kept where a team reaches them.

`address` reads what `[cache] remote` says; `folder`, `web` and `bucket` are the backends;
`guard` bounds what one may cost; `result` is a record as others can read it; `chunks` cuts
large files; `sending` and `getting` move one record; `service` is what a build calls.
"""
