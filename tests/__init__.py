"""The tests of Anabranch: `unit` (no I/O), `integration` (real Kafka, real HTTP), `acceptance` (processes).

A package, so that `tests.support` is found before any other `tests` that is installed.
"""
