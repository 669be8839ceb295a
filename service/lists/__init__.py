"""Files with addresses that somebody else suppresses: what they are packed in, their columns, and their words.

A sibling of `kahuna`: everything that the outside world decides about such files is here. Refuses to do any I/O: bytes
come in, lines go out, and no more of a file is held than a piece of it.
"""
