"""What stands around the tests: brokers, waiting, tools that have to be there. Holds no test."""
