"""Role `lmda`: puts local mail into mailboxes (step 4 on the path of a message).

`delivery` decides what each recipient gets and what became of him, without I/O of its own; `worker` takes items from the
spool, keeps several batches on their way to the store, and settles them.
"""
