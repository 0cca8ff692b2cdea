"""What the agent role tells those outside: counts, gauges and spans, each event once."""
