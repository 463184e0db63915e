"""What goes over the wire: one struct a body.

Requests refuse fields they do not know: a misspelt `predicted_end` must not be
taken for one that was left out. Every instant comes and goes as RFC 3339 with
an offset, and goes as UTC.
"""
