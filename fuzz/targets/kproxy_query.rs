//! Fuzzes the parser of the query string of `/commit`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| kafka_http_wrapper::kproxy::fuzz_targets::query(data));
