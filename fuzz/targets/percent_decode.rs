//! Fuzzes the percent-decoding of query strings.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| kafka_http_wrapper::http::fuzz_targets::percent_decoding(data));
