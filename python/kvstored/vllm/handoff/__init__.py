"""Prefill here, decode there: vLLM's connector `MooncakeConnectorV1` over the hand-off of `kvstored._native`.

A prefill instance keeps a prompt's blocks until the decode instance's workers have pulled them or a lease has ended.
Bytes move between the workers' memories in native threads; what is here decides what moves, and when blocks are free.
"""
