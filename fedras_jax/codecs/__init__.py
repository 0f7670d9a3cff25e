"""Codecs: from a client's item delta to a payload and back, one file each.

A new one is a file here and a line in `fedras_jax.registry`; the contract suite in
`tests/codecs/` then holds it to the laws that all codecs obey.
"""
