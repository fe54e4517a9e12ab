//! HTTP to Kafka, Kafka to HTTP, and a monitor of the delay between them.
