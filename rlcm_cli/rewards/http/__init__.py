"""Requests to servers that may be away, slow or hostile: one deadline each, bounded answers, words made printable."""
