//! Fuzzes frames and SASL messages of Kafka brokers.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| kafka_http_wrapper::kafka::fuzz_targets::frames(data));
