"""The stream store on Kafka topics."""
