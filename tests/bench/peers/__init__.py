"""The same job on what users would pick instead of Anabranch: `make bench-peers`. It judges nothing.

A folder for each peer: `requirements.txt` pins what it needs, `job.py` does the job as its documentation would have it.
"""
