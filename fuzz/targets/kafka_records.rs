//! Fuzzes the record data of a fetch response.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| kafka_http_wrapper::kafka::fuzz_targets::records(data));
