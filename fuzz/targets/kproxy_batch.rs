//! Fuzzes the parsers of batch bodies.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| kafka_http_wrapper::kproxy::fuzz_targets::batch(data));
