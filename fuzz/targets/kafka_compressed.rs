//! Fuzzes the decompression of record data.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| kafka_http_wrapper::kafka::fuzz_targets::compressed(data));
